//! Running other programs, waiting for conditions, making content.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Longer than anything a loaded machine needs; a wait that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a program to its end; a missing one says which package has it.
pub fn run(command: &mut Command) -> Ended {
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut stdout, mut stderr) = (file(), file());
    command.stdin(Stdio::null()).stdout(stdout.try_clone().expect("a handle"));
    command.stderr(stderr.try_clone().expect("a handle"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}", missing(command, &error)));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().expect("waits") {
            Some(status) => break status,
            None if Instant::now() < deadline => sleep(Duration::from_millis(10)),
            None => {
                // Ended already: as good as killed.
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "{command:?} still ran after {} s: {}{}",
                    PATIENCE.as_secs(),
                    text(&mut stdout),
                    text(&mut stderr)
                );
            }
        }
    };
    Ended { status, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// Runs a program that must succeed; gives what it printed on stdout.
pub fn run_ok(command: &mut Command) -> String {
    let ended = run(command);
    assert!(ended.status.success(), "{command:?}: {}\n{}", ended.status, ended.text());
    ended.stdout
}

/// What to say about a program that can't be run.
pub fn missing(command: &Command, error: &std::io::Error) -> String {
    let program = Path::new(command.get_program());
    let package = match program.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "mkfs.ext4" | "e2fsck" => "e2fsprogs",
        "qemu-system-x86_64" => "qemu-system-x86",
        "apt-get" => "apt",
        "dpkg-deb" => "dpkg",
        "fio" => "fio",
        "strace" => "strace",
        "mount" | "umount" => "mount",
        "cmp" => "diffutils",
        "prometheus" | "promtool" => "prometheus",
        "chromium" => "chromium",
        "curl" => "curl",
        "tmux" => "tmux",
        "systemd-analyze" => "systemd",
        "xmllint" => "libxml2-utils",
        "docker-compose" => "docker-compose",
        "chromedriver" => "chromium-driver",
        "ip" => "iproute2",
        "iptables" => "iptables",
        "unshare" | "nsenter" => "util-linux",
        _ => return format!("{} can't be run: {error}", program.display()),
    };
    format!("{} can't be run ({error}): apt-get install {package}", program.display())
}

fn text(file: &mut std::fs::File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("reads what was printed");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Polls until `check` gives something; `what` says what was waited for.
pub fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", PATIENCE.as_secs());
        sleep(POLL_EVERY);
    }
}

/// How long a fault lasts: its size, nothing that a test waits for.
pub fn hold(seconds: u64) {
    sleep(Duration::from_secs(seconds));
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Bytes that differ from block to block.
pub fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).expect("fits"));
    bytes
}
