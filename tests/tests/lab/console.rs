//! The console on a real lab, in tmux, by keys alone.

use continuum_tests::lab::{Lab, binary};
use std::process::Command;
use std::time::{Duration, Instant};

/// The console in a tmux of its own.
pub(crate) struct Tmux {
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Tmux {
    pub(crate) fn open(lab: &Lab, columns: u16, rows: u16) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let tmux = Self { socket: dir.path().join("tmux"), _dir: dir };
        let console = format!("exec {} --dir {}", binary().display(), lab.dir().display());
        let size = [columns.to_string(), rows.to_string()];
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", &size[0], "-y", &size[1], &console]);
        tmux
    }

    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").env("LANG", "C.UTF-8").arg("-u").arg("-S").arg(&self.socket);
        let output = command.args(words).output().expect("tmux runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Types; names of keys as tmux knows them.
    pub(crate) fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    pub(crate) fn text(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    #[track_caller]
    pub(crate) fn shows(&self, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = self.text();
            if text.contains(what) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {what} on\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

#[test]
fn a_drill_by_keys_alone_in_tmux_at_both_sizes() {
    let lab = Lab::start(&["--machines", "2"]);
    lab.wait_healthy(2, Duration::from_secs(60));
    let before: Vec<_> = lab.processes();
    for (columns, rows) in [(80, 24), (200, 50)] {
        let tmux = Tmux::open(&lab, columns, rows);
        tmux.shows("live");
        tmux.keys(&["3", "/", "app", "Enter"]);
        tmux.shows("1 of 2");
        tmux.keys(&["t"]);
        tmux.shows("y orders");
        tmux.keys(&["y"]);
        // The run screen follows by itself, from the order to the probes.
        let text = tmux.shows("Test failover of app-01: succeeded");
        // Long lines are wrapped at this width.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for probe in ["heartbeat: it answers", "every record checked", "writes: it goes on"] {
            assert!(text.contains(probe), "no {probe} on\n{text}");
        }
        // Replication goes on meanwhile.
        let machine = lab.machine("app-01");
        assert_eq!((&machine["mode"], &machine["test_state"]), (&"data".into(), &"running".into()));
        assert!(machine["rpo_seconds"].as_f64().is_some_and(|rpo| rpo < 5.0), "{machine}");
        // The same place offers what comes next.
        tmux.keys(&["a"]);
        tmux.shows("clean up the test failover");
        tmux.keys(&["x"]);
        tmux.shows("y orders");
        tmux.keys(&["y"]);
        lab.wait_for("nothing of the drill is left", Duration::from_secs(30), |lab| {
            lab.machine("app-01")["test_state"] == "none"
        });
        let views = lab.dir().join("target/views");
        assert_eq!(std::fs::read_dir(&views).map(Iterator::count).unwrap_or(0), 0, "records are left");
        tmux.keys(&["C-c", "C-c"]);
    }
    assert_eq!(lab.processes(), before, "the same processes as before, and no other");
}
