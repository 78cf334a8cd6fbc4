//! The same vault on a real PostgreSQL: every test of this suite, once more.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the socket's folder of the server that the tests are to use.
const SERVER: &str = "CONTINUUM_TEST_POSTGRES";

/// A database of its own for the vault in `dir`, where this run is on PostgreSQL. The same `dir`, the same one.
pub(crate) fn database(dir: &Path) -> Option<String> {
    let socket = std::env::var(SERVER).ok()?;
    let name: String = dir
        .display()
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    let made = Command::new(program("createdb")).args(["-h", &socket, "-U", "continuum", &name]).output();
    let made = made.expect("createdb runs");
    let known = String::from_utf8_lossy(&made.stderr).contains("already exists");
    assert!(made.status.success() || known, "{made:?}");
    Some(format!("postgres://continuum@localhost/{name}?host={socket}"))
}

/// A program of the newest PostgreSQL here; Debian keeps the server's out of the path.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|entry| entry.path().join("bin").join(name)).filter(|path| path.exists()).max();
    newest.unwrap_or_else(|| name.into())
}

/// PostgreSQL will not run as root.
fn as_somebody(program: PathBuf) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("ct-pg-").tempdir_in("/tmp").expect("a folder");
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").arg("postgres").arg(dir.path()).status().expect("chown runs");
            assert!(owned.success());
        }
        let data = dir.path().join("data");
        let mut init = as_somebody(program("initdb"));
        init.arg("-D").arg(&data).args(["-A", "trust", "-U", "continuum", "--no-sync", "-E", "UTF8"]);
        let init = init.current_dir("/").output().expect("initdb runs: tests/run installs postgresql");
        assert!(init.status.success(), "{init:?}");
        let mut serve = as_somebody(program("postgres"));
        serve.arg("-D").arg(&data).arg("-k").arg(dir.path());
        serve.args(["-c", "listen_addresses=", "-c", "max_connections=300"]).current_dir("/");
        let child = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres runs");
        let server = Self { child, dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !server.answers() {
            assert!(Instant::now() < deadline, "postgres does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn answers(&self) -> bool {
        let asked = Command::new(program("pg_isready")).arg("-h").arg(self.dir.path()).output();
        asked.is_ok_and(|asked| asked.status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.dir.path().join("data");
        let _ = as_somebody(program("pg_ctl")).arg("-D").arg(data).args(["stop", "-m", "immediate"]).output();
        let _ = self.child.wait();
    }
}

#[test]
fn everything_holds_on_postgresql_too() {
    if std::env::var_os(SERVER).is_some() {
        return;
    }
    let server = Server::start();
    let mut suite = Command::new(std::env::current_exe().expect("a test has a path"));
    suite.env(SERVER, server.dir.path()).env_remove("NEXTEST").args(["--test-threads", "2"]);
    let output = suite.output().expect("the suite runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    // They ran there: a database for each vault.
    let mut ask = Command::new(program("psql"));
    ask.arg("-h").arg(server.dir.path()).args(["-U", "continuum", "-d", "postgres", "-Atc"]);
    let counted = ask.arg("SELECT count(*) FROM pg_database").output().expect("psql runs");
    let databases: u32 = String::from_utf8_lossy(&counted.stdout).trim().parse().expect("a number");
    assert!(databases > 15, "only {databases} databases");
}
