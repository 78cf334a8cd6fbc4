//! A pseudo terminal with the console in it.

use crate::fake::{self, FakeVault, World};
use crate::scene;
use continuum_proto::v1 as pb;
use pb::order_request::Order;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Machines here are slow and busy.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Screen {
    child: Child,
    controller: Option<File>,
    /// The program's end, kept so that its settings can be read when the program is gone.
    end: File,
    before: Termios,
    output: Receiver<Vec<u8>>,
    pub(crate) parser: vt100::Parser,
    /// All that was ever sent.
    pub(crate) sent: Vec<u8>,
}

/// A vault with the estate of a bad night that carries out test failovers.
pub(crate) fn vault() -> FakeVault {
    let mut entities = scene::estate();
    // What is under way or up belongs to the night; here only what the test does happens.
    entities.retain(|entity| !matches!(entity, pb::entity::Entity::Job(_)));
    FakeVault::start(World {
        entities,
        points: (1..=300).map(scene::point).collect(),
        readiness: Ok(pb::ReadinessReply {
            machine_version: 7,
            preview: Some(scene::preview()),
            ..scene::readiness(&scene::machine(3, "app-01"), &pb::ReadinessRequest::default())
        }),
        on_order: Box::new(|order| {
            let kind = match &order.order {
                Some(Order::TestFailover(_)) => "test-failover",
                Some(Order::Failover(_)) => "failover",
                _ => "bookmark",
            };
            Ok(pb::Job {
                kind: kind.into(),
                machine: "app-01".into(),
                machine_id: order.machine.clone(),
                ..scene::drill("running")
            })
        }),
        ..World::default()
    })
}

impl Screen {
    /// Starts the console against a vault.
    pub(crate) fn start(vault: &FakeVault, size: (u16, u16), more: &[(&str, &str)]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let end = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (columns, rows) = size;
        let config = vault.path().join("config");
        if !config.exists() {
            // The vault of the test is the profile in use; its address changes when it comes back.
            std::fs::create_dir_all(config.join("profiles")).unwrap();
            std::os::unix::fs::symlink(vault.path().join("profile"), config.join("profiles/night")).unwrap();
            std::fs::write(config.join("config.toml"), "profile = \"night\"\n").unwrap();
        }
        tcsetwinsize(&controller, winsize(columns, rows)).unwrap();
        let before = tcgetattr(&end).unwrap();
        let io = || Stdio::from(end.try_clone().unwrap());
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(fake::binary()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", vault.path());
        command.env("CONTINUUM_CONFIG_DIR", &config);
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command.env("COLORTERM", "truecolor").envs(more.iter().copied());
        let child = command.stdin(io()).stdout(io()).stderr(io()).spawn().unwrap();
        drop(command);
        let controller = File::from(controller);
        let mut reading = controller.try_clone().unwrap();
        let (told, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = reading.read(&mut buffer) {
                if told.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            controller: Some(controller),
            end,
            before,
            output,
            parser: vt100::Parser::new(rows, columns, 0),
            sent: Vec::new(),
        }
    }

    /// Started, and the estate is on the screen.
    pub(crate) fn live(vault: &FakeVault, size: (u16, u16), more: &[(&str, &str)]) -> Self {
        let mut screen = Self::start(vault, size, more);
        screen.shows("db-01");
        screen.shows("live");
        screen.settle();
        screen
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.press_bytes(keys.as_bytes());
    }

    pub(crate) fn press_bytes(&mut self, keys: &[u8]) {
        self.controller.as_mut().unwrap().write_all(keys).unwrap();
    }

    pub(crate) fn resize(&mut self, columns: u16, rows: u16) {
        tcsetwinsize(self.controller.as_ref().unwrap(), winsize(columns, rows)).unwrap();
        self.parser.screen_mut().set_size(rows, columns);
    }

    /// The terminal goes away: the line was cut.
    pub(crate) fn hang_up(&mut self) {
        self.controller = None;
    }

    fn take(&mut self, bytes: &[u8]) {
        self.parser.process(bytes);
        self.sent.extend_from_slice(bytes);
    }

    pub(crate) fn text(&self) -> String {
        self.parser.screen().contents()
    }

    /// Reads until the screen shows this.
    #[track_caller]
    pub(crate) fn shows(&mut self, what: &str) {
        self.until(what, |screen| screen.text().contains(what));
    }

    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, seen: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !seen(self) {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.take(&bytes),
                Err(error) => panic!("{error}: no {what} on\n{}", self.text()),
            }
        }
    }

    /// Reads until nothing was sent for a while, and says how much was.
    pub(crate) fn settle(&mut self) -> usize {
        self.silent_for(Duration::from_millis(400))
    }

    fn silent_for(&mut self, silence: Duration) -> usize {
        let before = self.sent.len();
        while let Ok(bytes) = self.output.recv_timeout(silence) {
            self.take(&bytes);
        }
        self.sent.len() - before
    }

    /// What is sent within this time.
    pub(crate) fn sent_within(&mut self, time: Duration) -> usize {
        let (before, deadline) = (self.sent.len(), Instant::now() + time);
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return self.sent.len() - before;
                }
            }
        }
    }

    /// Waits for its end, and reads all that it sent.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it goes on:\n{}", self.text());
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(20)) {
                self.take(&bytes);
            }
        };
        self.silent_for(Duration::from_millis(100));
        status
    }

    /// Whether the program's end is as it was before the program: echo, lines, signals.
    #[track_caller]
    pub(crate) fn is_given_back(&self) {
        let now = tcgetattr(&self.end).unwrap();
        assert_eq!(now.local_modes, self.before.local_modes);
        assert_eq!(now.input_modes, self.before.input_modes);
        assert_eq!(now.output_modes, self.before.output_modes);
        let screen = self.parser.screen();
        assert!(!screen.alternate_screen(), "the other screen is still on");
        assert!(!screen.hide_cursor(), "the cursor is still hidden");
        assert!(!screen.bracketed_paste(), "pastes are still marked");
        assert!(!screen.application_cursor() && !screen.application_keypad());
    }

    pub(crate) fn is_taken(&self) -> bool {
        !tcgetattr(&self.end).unwrap().local_modes.contains(LocalModes::ECHO)
            && self.parser.screen().alternate_screen()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
