//! The table at the end of the demo.

use std::time::Duration;

use crate::api::types::PlanReply;
use crate::cli::out::{Table, human_seconds, human_us, thousands};
use crate::core::hashtree::Hash;
use crate::core::units::HumanBytes;

use super::load::Figures;

/// One resync job: a join or a repair.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// What `evenkeel plan` said before; absent if it could not say.
    pub plan: Option<PlanReply>,
    /// Verified bytes written to targets.
    pub moved_bytes: u64,
    /// From the event until the cluster was clean.
    pub took: Duration,
    /// From the first byte until the cluster was clean.
    pub copying: Duration,
    /// The first ETA that the status gave, and how long it then took.
    pub first_eta: Option<(f64, Duration)>,
    /// The same when a tenth was there.
    pub eta_at_tenth: Option<(f64, Duration)>,
}

impl Job {
    fn to_move(&self) -> Option<u64> {
        self.plan.as_ref().map(|p| p.totals.bytes)
    }

    /// The plan's lower bound counts moves; in bytes, at the plan's mean bytes a move.
    fn lower_bound(&self) -> Option<u64> {
        let totals = &self.plan.as_ref()?.totals;
        if totals.moves == 0 {
            return Some(0);
        }
        let bytes = u128::from(totals.bytes) * u128::from(totals.lower_bound_moves) / u128::from(totals.moves);
        u64::try_from(bytes).ok()
    }

    fn rate_mb(&self) -> String {
        let seconds = self.copying.as_secs_f64();
        if seconds > 0.0 { format!("{:.0} MB/s", self.moved_bytes as f64 / 1e6 / seconds) } else { "—".to_owned() }
    }
}

/// A volume hash and what it must be.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    pub cluster: Hash,
    pub expected: Hash,
}

impl Compared {
    /// They are equal.
    pub fn is_right(&self) -> bool {
        self.cluster == self.expected
    }

    fn text(&self) -> String {
        let hash = hex::encode(self.cluster);
        if self.is_right() {
            format!("{hash}  as expected")
        } else {
            format!("{hash}  WRONG: expected {}", hex::encode(self.expected))
        }
    }
}

/// Everything that the demo measured.
pub struct Outcome {
    pub join: Job,
    pub repair: Job,
    pub offered_iops: u64,
    /// Before, joining, repairing, after.
    pub foreground: [Figures; 4],
    pub hash_before: Compared,
    pub hash_after: Compared,
    pub read_back_bytes: u64,
    pub reads_under_load: u64,
}

impl Outcome {
    /// The whole table.
    pub fn render(&self) -> String {
        let mut jobs = Table::new(&["RESYNC", ">NODE JOINS", ">NODE DIES"]);
        let mut row = |title: &str, value: &dyn Fn(&Job) -> String| {
            jobs.row([title.to_owned(), value(&self.join), value(&self.repair)]);
        };
        let bytes = |b: Option<u64>| b.map_or("—".to_owned(), |b| HumanBytes(b).to_string());
        row("bytes to move, by the plan", &|j| bytes(j.to_move()));
        row("lower bound", &|j| bytes(j.lower_bound()));
        row("moved", &|j| bytes(Some(j.moved_bytes)));
        row("rate", &|j| j.rate_mb());
        let told = |eta: Option<(f64, Duration)>| eta.map_or("—".to_owned(), |(eta, _)| human_seconds(eta));
        let took = |eta: Option<(f64, Duration)>| eta.map_or("—".to_owned(), |(_, t)| human_seconds(t.as_secs_f64()));
        row("ETA first given", &|j| told(j.first_eta));
        row("actual from then", &|j| took(j.first_eta));
        row("ETA at 10 %", &|j| told(j.eta_at_tenth));
        row("actual from then", &|j| took(j.eta_at_tenth));
        row("from the event to clean", &|j| human_seconds(j.took.as_secs_f64()));

        let mut guest = Table::new(&["GUEST", ">BEFORE", ">NODE JOINS", ">NODE DIES", ">AFTER"]);
        let mut row = |title: &str, value: &dyn Fn(&Figures) -> String| {
            let [a, b, c, d] = &self.foreground;
            guest.row([title.to_owned(), value(a), value(b), value(c), value(d)]);
        };
        row("IOPS", &|f| thousands(f.iops()));
        row("of those offered", &|f| format!("{:.1} %", f.iops() as f64 / self.offered_iops.max(1) as f64 * 100.0));
        row("p50", &|f| human_us(f.p50_us));
        row("p99", &|f| human_us(f.p99_us));
        row("longest stall", &|f| human_us(f.longest_stall.as_micros() as u64));

        format!(
            "{}\n{}\nvolume hash before  {}\nvolume hash after   {}\n\
             verified            {} read back at the end, {} reads under load\n",
            jobs.render(false),
            guest.render(false),
            self.hash_before.text(),
            self.hash_after.text(),
            HumanBytes(self.read_back_bytes),
            thousands(self.reads_under_load)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::placement::Totals as PlanTotals;

    #[test]
    fn the_table_holds_every_figure() {
        let totals = PlanTotals { moves: 10, bytes: 1000 << 20, lower_bound_moves: 9, ..PlanTotals::default() };
        let join = Job {
            plan: Some(PlanReply { totals, ..PlanReply::default() }),
            moved_bytes: 1000 << 20,
            took: Duration::from_secs(12),
            copying: Duration::from_secs(10),
            first_eta: Some((11.0, Duration::from_secs(12))),
            eta_at_tenth: Some((8.0, Duration::from_secs(9))),
        };
        let figures = Figures {
            operations: 990,
            seconds: 1.0,
            p50_us: 400,
            p99_us: 2500,
            longest_stall: Duration::from_millis(30),
        };
        let right = Compared { cluster: [1; 32], expected: [1; 32] };
        let wrong = Compared { cluster: [1; 32], expected: [2; 32] };
        let outcome = Outcome {
            join,
            repair: Job::default(),
            offered_iops: 1000,
            foreground: std::array::from_fn(|_| figures.clone()),
            hash_before: right,
            hash_after: wrong,
            read_back_bytes: 1 << 30,
            reads_under_load: 12_345,
        };
        let text = outcome.render();
        for part in [
            "1000 MiB", "900 MiB", "105 MB/s", "11 s", "12 s", "8.0 s", "9.0 s", "990", "99.0 %", "400 µs", "2.5 ms",
            "30.0 ms", "12,345",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.contains("as expected") && text.contains("WRONG: expected 0202"), "{text}");
    }
}
