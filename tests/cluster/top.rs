//! `evenkeel top` on a real terminal of 80 columns and 24 lines.

use std::path::PathBuf;
use std::process::Command;

use crate::dev::{Daemon, Dev, binary, is_evenkeel};
use crate::tools::{pattern, run, run_ok, wait_for};

/// A terminal emulator: what it shows can be read, and keys can be pressed.
struct Terminal {
    socket: PathBuf,
    _server: Daemon,
}

impl Terminal {
    /// Runs `script` in a shell.
    fn start(dev: &Dev, script: &str) -> Terminal {
        let socket = dev.path("tmux");
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&socket).args(["-u", "-f", "/dev/null", "-D"]);
        let server = Daemon::spawn(&mut command, &dev.path("tmux.log"));
        let terminal = Terminal { socket, _server: server };
        wait_for("the terminal", || {
            let mut session = terminal.command(&["new-session", "-d", "-x", "80", "-y", "24", script]);
            run(&mut session).status.success().then_some(())
        });
        terminal
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        // It never starts a server of its own, which would outlive this process.
        command.arg("-N").arg("-S").arg(&self.socket).args(args);
        command
    }

    fn press(&self, key: &str) {
        run_ok(&mut self.command(&["send-keys", key]));
    }

    fn picture(&self) -> String {
        run_ok(&mut self.command(&["capture-pane", "-p"]))
    }

    /// Waits until the picture has all of these.
    fn wait_shows(&self, parts: &[&str]) {
        wait_for(&format!("{parts:?} on the terminal"), || {
            let picture = self.picture();
            parts.iter().all(|part| picture.contains(part)).then_some(())
        });
    }
}

/// A shell line that runs `top`, notes its process id, and says how it ended. Its parent is the shell, not this process.
fn script(dev: &Dev) -> String {
    let (binary, cluster, pid) = (binary(), dev.cluster_file(), dev.path("top.pid"));
    format!(
        "echo before; sh -c 'echo $$ > {}; exec env -u EVENKEEL_PARENT_PID {} --cluster {} top'; echo ended $?; cat",
        pid.display(),
        binary.display(),
        cluster.display()
    )
}

pub fn an_operator_watches_on_a_narrow_terminal() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let mut gateway = dev.start_gateway("v", &[]);
    gateway.wait_serving();
    let terminal = Terminal::start(&dev, &script(&dev));
    terminal.wait_shows(&["3 of 3 nodes up", "NODE▲", "n1 ", "n2 ", "n3 ", ": ok"]);

    // What a guest does is seen at its volume and at the nodes.
    terminal.press("4");
    let (mut client, data) = (gateway.client(), pattern(4096, 3));
    wait_for("the guest's writes at its volume", || {
        (0..50u64).for_each(|i| client.write(i * 4096, &data).expect("writes"));
        let picture = terminal.picture();
        let row = picture.lines().find(|l| l.starts_with("v "))?;
        let writes = row.split_whitespace().nth(5)?;
        (writes != "-" && writes != "0").then_some(())
    });
    let guest = &dev.json(&["volume", "show", "v"])["guest"];
    assert!(guest["p99_us"].is_u64() && guest["read_iops"] == 0, "{guest}");

    terminal.press("1");
    dev.kill_node("n2");
    terminal.wait_shows(&["2 of 3 nodes up", "n2           down", "Node n2"]);
    let rows = |picture: &str| -> Vec<String> {
        let nodes = picture.lines().filter(|l| ["n1 ", "n2 ", "n3 "].iter().any(|n| l.starts_with(n)));
        nodes.map(|l| l[..2].to_owned()).collect()
    };
    terminal.press("Right");
    terminal.wait_shows(&["STATE▲"]);
    assert_eq!(rows(&terminal.picture()), ["n2", "n1", "n3"], "sorted by state");
    terminal.press("r");
    terminal.wait_shows(&["STATE▼"]);
    assert_eq!(rows(&terminal.picture()), ["n1", "n3", "n2"]);

    // Without its coordinator it says so, and goes on showing what it knew.
    dev.signal_node("coordinator", "stop");
    terminal.wait_shows(&["does not answer", "n2           down", "s old"]);
    dev.signal_node("coordinator", "cont");
    // Of n2 it may still say that it does not answer.
    wait_for("the coordinator's answers", || (!terminal.picture().contains("s old")).then_some(()));

    terminal.press("C-c");
    terminal.wait_shows(&["before", "ended 0"]);
    drop(terminal);

    // A signal leaves the terminal as it was, too.
    let terminal = Terminal::start(&dev, &script(&dev));
    terminal.wait_shows(&["NODE▲", "n1 "]);
    let pid = std::fs::read_to_string(dev.path("top.pid")).expect("its process id");
    run_ok(Command::new("kill").args(["-TERM", pid.trim()]));
    terminal.wait_shows(&["before", "ended 0"]);
    drop(terminal);

    // It goes with its terminal, as when a connection breaks.
    let terminal = Terminal::start(&dev, &script(&dev));
    terminal.wait_shows(&["NODE▲", "n1 "]);
    let pid = std::fs::read_to_string(dev.path("top.pid")).expect("its process id");
    let pid: u64 = pid.trim().parse().expect("a number");
    assert!(is_evenkeel(pid));
    drop(terminal);
    wait_for("top has ended", || (!is_evenkeel(pid)).then_some(()));

    // Without a terminal it says where to look instead.
    let ended = dev.try_cli(&["top"]);
    assert!(!ended.status.success() && ended.stderr.contains("ssh -t"), "{}", ended.text());
    drop((client, gateway));
    dev.start_node("n2");
    dev.finish();
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // How it says good-bye is its own affair; what doesn't end by this is ended with the `Daemon`.
        run(&mut self.command(&["kill-server"]));
    }
}
