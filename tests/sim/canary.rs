//! Rules that the simulator breaks, so that the checkers can be seen to catch it; and rules that it can't break, with the
//! test that proves them instead.
//!
//! The switches alter what passes between the production core and the world: inputs, actions, messages, disk contents.

macro_rules! canaries {
    ($($name:ident $rule:literal $what:literal $(rare $rare:literal)?;)*) => {
        /// A rule that is switched off.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Canary {
            $($name,)*
        }

        impl Canary {
            /// All, in the order of their rules.
            pub const ALL: &'static [(Canary, &'static str, &'static str)] =
                &[$((Canary::$name, $rule, $what),)*];

            /// Its harm needs a power loss of all in the middle of a resync: it gets some more.
            pub fn needs_power_losses(self) -> bool {
                matches!(self, Canary::LearnerNotSynced | Canary::IncompleteMarkForgotten)
            }

            /// The coincidence that the harm needs, where an ordinary run seldom meets it.
            pub fn rare(self) -> Option<&'static str> {
                match self {
                    $($(Canary::$name => Some($rare),)?)*
                    #[allow(unreachable_patterns)]
                    _ => None,
                }
            }
        }
    };
}

canaries! {
    BootIdKept "R1" "a boot id is kept over a crash";
    RecoverBeforeAllReturned "R2" "the first member that returns is the truth";
    IncompleteBelieved "R2" "an incomplete copy counts as complete at the coordinator";
    ConfigNotPersisted "R3" "a configuration is accepted without being persisted";
    OutcomeGuessed "R3" "a primary takes a proposal as refused before it has read the outcome";
    PromotedAtOnce "R3" "a learner becomes a member before it is complete";
    OldMapRestored "R4" "the coordinator restarts with an older map";
    PurgeBeforeSwap "R4" "a copy is purged before another has taken its place";
    MinimumIgnored "R5" "a configuration below min_replicas";
    ConnectionIgnored "R6" "connection numbers are ignored";
    LeaseIgnored "R7" "a primary serves without leases";
    GrantNotWaitedFor "R7" "a new primary doesn't wait out its grant" rare
        "a failover within a lease, under a reader that stays behind";
    GatewayWordIgnored "R8" "what gateways can't reach doesn't count";
    AccusationIgnored "R8" "a primary's accusation of a live member never counts";
    AckBeforeSecondaryHasIt "R9" "an ack before a secondary has the write";
    UncommittedRead "R10" "a read doesn't wait for the write that it overlaps";
    OperationSkipped "R11" "a secondary skips an ordered write";
    FlushOnPrimaryAlone "R12" "a flush on the primary alone";
    FlushJoinsEarlier "R12" "a flush joins an fdatasync that started before it arrived";
    ReplayForgotten "R13" "the durability epoch is ignored";
    FenceIgnored "R14" "fences are ignored";
    FenceNotForwarded "R14" "learners don't receive fences" rare
        "a learner leads before any other member told it of a fence, as all do when it collects";
    FailedFsyncIgnored "R15" "a failed fsync counts as done";
    TableIgnored "R16" "a learner counts as equal without a comparison";
    ForwardDropped "R17" "a forwarded write is dropped";
    WindowOffByOne "R17" "a window's last block isn't copied";
    LearnerNotSynced "R19" "what resync wrote is not synced before the replica counts" rare
        "a learner that just became a member loses its cache, and all others restart before it is taught again";
    LostRecordIsComplete "R21" "a copy whose PG record is damaged or lost counts as complete";
    IncompleteMarkForgotten "R21" "the mark of an incomplete copy isn't stored" rare
        "a restarted member that all others leave alone, by their own restarts, in the middle of its lesson";
    DirtyMarksLost "R23" "dirty marks don't survive a crash";
    LeavesNotVerified "R24" "a block is served without being verified";
    StaleRoot "R25" "a dirty chunk has the root that it had when it was clean";
    ReconcileSkipped "R3, R9" "uncommitted ranges are not reconciled" rare
        "a range that the old primary and one member alone have";
    StripeChanged "R26" "a volume's stripe changes";
}

/// Rules that no switch here can break, why, and which test proves them.
pub const ELSEWHERE: [(&str, &str, &str); 5] = [
    (
        "R18",
        "it bounds how long a write waits for resync, and a check of content can't see that",
        "core/replica/tests, tests/throttle",
    ),
    ("R20", "disks here are full or not; they have no shares to free", "core/manager/decide_tests"),
    (
        "R22",
        "records here are whole: copies, checksums and torn headers lie below the simulated disk",
        "disk/crash_tests, disk/layout/tests",
    ),
    ("R27", "salvage is an offline tool", "no test yet: the tool is to come"),
    ("R28", "messages here are not encoded", "meta/records_tests, wire/frame"),
];
