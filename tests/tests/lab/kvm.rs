//! A guest of QEMU whose disks stay attached as they are: a Linux that writes all the while, protected through QEMU's
//! monitor, by services from configuration files.

use super::headless::{Estate, Service, configuration, journals, ports};
use continuum_fabric::kvm::qmp::Qmp;
use continuum_fabric::lab::qemu::image;
use continuum_tests::lab::binary;
use continuum_tests::oracle;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Mounts the disk, starts the guest agent, heeds the power button, and writes.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk button evdev; do
    insmod /modules/$module.ko
done
while [ ! -b /dev/vda ]; do usleep 50000; done
mkdir -p /data /run /var/run /var/log /tmp /etc/acpi/PWRF
mount -t ext4 -o errors=remount-ro /dev/vda /data || echo "no file system"
printf '#!/bin/sh\nkill -9 $(cat /run/writer)\nuntil umount /data; do usleep 100000; done\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid
qemu-ga -m isa-serial -p /dev/ttyS1 -t /run &
(
    n=0
    while :; do
        n=$((n + 1))
        echo $n >>/data/ledger && sync
        echo "tick $n"
        usleep 100000
    done
) &
echo $! >/run/writer
while :; do sleep 1000; done
"#;

fn ran(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A kernel, and an initramfs of ours with Debian's busybox and guest agent.
fn guest(dir: &Path) {
    let packages = binary().ancestors().nth(2).expect("target/<profile>/continuum").join("guest");
    let package = std::fs::read_dir(&packages).into_iter().flatten().flatten().map(|entry| entry.path());
    let package = package.filter(|path| path.extension().is_some_and(|end| end == "deb")).last();
    image::prepare(dir, package.as_deref()).expect("a kernel");
    let root = dir.join("root");
    for folder in ["bin", "modules", "dev", "proc", "sys"] {
        std::fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    let unpacked = dir.join("package");
    let package = package.unwrap_or_else(|| {
        let fetched = std::fs::read_dir(dir).expect("a folder").flatten().map(|entry| entry.path());
        fetched
            .filter(|path| path.extension().is_some_and(|end| end == "deb"))
            .last()
            .expect("a kernel's package")
    });
    ran(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked));
    let modules = std::fs::read_dir(unpacked.join("lib/modules")).expect("modules").flatten().next();
    let modules = modules.expect("a kernel's modules").path().join("kernel/drivers");
    for module in [
        "virtio/virtio_ring",
        "virtio/virtio",
        "virtio/virtio_pci_legacy_dev",
        "virtio/virtio_pci_modern_dev",
        "virtio/virtio_pci",
        "block/virtio_blk",
        "acpi/button",
        "input/evdev",
    ] {
        let name = format!("{}.ko", module.rsplit('/').next().expect("a name"));
        std::fs::copy(modules.join(format!("{module}.ko")), root.join("modules").join(name))
            .expect("a module");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    std::fs::copy(busybox.expect("busybox"), root.join("bin/busybox")).expect("busybox");
    std::fs::copy("/usr/sbin/qemu-ga", root.join("bin/qemu-ga"))
        .expect("the guest agent: `tests/run` installs it");
    for library in ran(Command::new("ldd").arg("/usr/sbin/qemu-ga")).split_whitespace() {
        if let Some(inside) = library.strip_prefix('/') {
            let to = root.join(inside);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            std::fs::copy(library, to).expect("a library");
        }
    }
    std::fs::write(root.join("init"), INIT).expect("a script");
    std::fs::set_permissions(root.join("init"), std::fs::Permissions::from_mode(0o755)).expect("it may run");
    let pack = format!("find . | busybox cpio -o -H newc > {}", dir.join("initrd").display());
    ran(Command::new("sh").args(["-c", &pack]).current_dir(&root));
}

struct Machine<'a> {
    estate: &'a Estate,
    qemu: Option<Service>,
}

impl Machine<'_> {
    fn start(&mut self) {
        let at = |name: &str| self.estate.path(name);
        let socket = |name: &str| format!("unix:{},server=on,wait=off", at(name).display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-name", "web1"])
            .args(["-machine", "pc,accel=tcg", "-cpu", "max", "-m", "192"])
            .arg("-kernel")
            .arg(at("guest/vmlinuz"))
            .arg("-initrd")
            .arg(at("guest/initrd"))
            .args(["-append", "console=ttyS0 panic=-1"])
            .args([
                "-chardev",
                &format!("file,id=log,path={}", at("console").display()),
                "-serial",
                "chardev:log",
            ])
            .args([
                "-chardev",
                &format!("socket,id=qga,path={},server=on,wait=off", at("web1.qga").display()),
            ])
            .args(["-serial", "chardev:qga"])
            .args(["-qmp", &socket("web1.qmp"), "-qmp", &socket("test.qmp")])
            .arg("-blockdev")
            .arg(format!(
                "driver=qcow2,node-name=root,discard=unmap,file.driver=file,file.filename={}",
                at("web1.qcow2").display()
            ))
            .args(["-device", "virtio-blk-pci,drive=root,id=vda"]);
        let log = std::fs::File::create(at("qemu.log")).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        for socket in ["web1.qmp", "web1.qga", "test.qmp"] {
            let _ = std::fs::remove_file(at(socket));
        }
        self.qemu = Some(Service(command.spawn().expect("QEMU runs")));
        self.estate.until("QEMU's monitors are there", || at("web1.qmp").exists() && at("test.qmp").exists());
    }

    fn monitor(&self) -> Qmp {
        Qmp::connect(&self.estate.path("test.qmp")).expect("a monitor of our own")
    }

    fn ticks(&self) -> usize {
        std::fs::read_to_string(self.estate.path("console")).unwrap_or_default().matches("tick").count()
    }

    fn describe(&self) -> Value {
        let output = self.estate.verb(&["describe", "machine", "app1"]).output().expect("continuum runs");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn is_whole(&self) -> bool {
        let machine = self.describe();
        machine["state"] == "protected" && machine["mode"] == "interval"
    }

    #[track_caller]
    fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(150);
        while !check() {
            assert!(
                Instant::now() < deadline,
                "never: {what}\n{}\n{}\n{}",
                self.describe(),
                self.estate.log(),
                std::fs::read_to_string(self.estate.path("console")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Replica and frozen disk are equal, block for block.
    #[track_caller]
    fn verify(&self) {
        self.until("it is whole", || self.is_whole());
        let verified = self.estate.json(&["verify", "app1"]);
        assert_eq!(verified["disks"][0]["equal"], true, "{verified}\n{}", self.estate.log());
    }

    /// Brings a point up for a look, and gives its disk.
    #[track_caller]
    fn brought_up(&self, point: &str) -> PathBuf {
        let drill = self.estate.json(&["test-failover", "app1", "--point", point]);
        let endpoint = drill["machines"][0]["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
        let image = self.estate.path("looked-at.raw");
        let _ = std::fs::remove_file(&image);
        ran(Command::new("nbdcopy").arg(&endpoint).arg(&image));
        self.estate.json(&["cleanup", "app1"]);
        image
    }

    fn points(&self, kind: &str) -> Vec<Value> {
        let points = self.estate.json(&["get", "points", "app1"]);
        let points = points.as_array().expect("a list").clone();
        points.into_iter().filter(|point| point["kind"] == kind).collect()
    }

    fn events(&self) -> String {
        self.estate.json(&["get", "events"]).to_string()
    }
}

/// What e2fsck says of an image, after its journal was replayed.
fn check_file_system(image: &Path) {
    let fsck = |options: &[&str]| {
        let ended = Command::new("e2fsck").args(options).arg(image).output().expect("e2fsck runs");
        (ended.status.code(), String::from_utf8_lossy(&ended.stdout).into_owned())
    };
    let (replayed, said) = fsck(&["-y", "-E", "journal_only"]);
    assert!(replayed.is_some_and(|code| code < 4), "{said}");
    let (checked, said) = fsck(&["-f", "-n"]);
    assert_eq!(checked, Some(0), "the file system is not clean: {said}");
}

fn needs_recovery(image: &Path) -> bool {
    ran(Command::new("dumpe2fs").arg("-h").arg(image)).contains("needs_recovery")
}

/// The last line of the ledger on an image.
fn ledger(image: &Path) -> u64 {
    let text = ran(Command::new("debugfs").args(["-R", "cat ledger"]).arg(image));
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "the ledger has a gap");
    numbers.len() as u64
}

#[test]
fn a_kvm_guest_is_protected_without_touching_how_its_disks_are_attached() {
    let estate = Estate::new();
    let ports = ports();
    let root = estate.dir.path().display().to_string();
    guest(&estate.path("guest"));
    // 64 MiB, of which 16 do not compress.
    std::fs::create_dir(estate.path("files")).expect("a folder");
    let noise = "head -c 16777216 /dev/urandom";
    ran(Command::new("sh").arg("-c").arg(format!("{noise} > {root}/files/noise")));
    let raw = estate.path("web1.raw");
    std::fs::File::create(&raw).and_then(|file| file.set_len(64 * MIB)).expect("an image");
    ran(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(estate.path("files")).arg(&raw));
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    ran(Command::new("qemu-img").args(convert).arg(&raw).arg(estate.path("web1.qcow2")));
    let mut machine = Machine { estate: &estate, qemu: None };
    machine.start();

    // The inventory knows it, and what its disk is called.
    let continuumd = binary().with_file_name("continuumd");
    let listed = ran(Command::new(continuumd).arg("machines").arg(estate.dir.path()));
    assert!(listed.contains("web1.qmp\tweb1\trunning") && listed.contains("node root\t64"), "{listed}");

    let text = configuration(estate.dir.path(), ports, "");
    let (servers, _) = text.split_once("[[agent]]").expect("an agent");
    let servers = servers.replace(
        "[process_server]",
        "[vault.policy]\nreplication_interval_seconds = 5\ncrash_point_seconds = 1\napp_point_seconds = 5\n[process_server]",
    );
    // `app1` is what this estate enrols.
    let config = estate.path("continuumd.toml");
    let agent = format!(
        r#"
[[agent]]
name = "app1"
site = "here"
fabric = "kvm"
dir = "{root}/agent"
identity = "{root}/app1/identity"
vault = "127.0.0.1:{}"
[agent.qemu]
monitor = "{root}/web1.qmp"
guest_agent = "{root}/web1.qga"
scratch = "{root}/scratch"
stop_seconds = 60
[[agent.disks]]
name = "disk0"
node = "root"
"#,
        ports[0]
    );
    std::fs::write(&config, servers + &agent).expect("a file");
    let [_vault, _servers, agent] = estate.up(&config, ports[0]);
    machine.until("the guest writes", || machine.ticks() > 3);
    estate.json(&["protect", "app1", "--to", "there"]);
    machine.until("it is protected", || machine.is_whole());
    // What is zero or was never written cost nothing.
    let first = journals(estate.dir.path());
    assert!((16 * MIB..24 * MIB).contains(&first), "{first} bytes of journal");
    machine.verify();

    // A point for which file systems were at rest, and one that is what a power cut leaves; the guest went on meanwhile.
    machine.until("an application-consistent point", || !machine.points("app").is_empty());
    let point = machine.points("app")[0]["id"].as_str().expect("an id").to_owned();
    let image = machine.brought_up(&point);
    assert!(!needs_recovery(&image), "its file system was at rest");
    check_file_system(&image);
    let early = ledger(&image);
    estate.json(&["bookmark", "app1", "by-hand"]);
    let told = machine.points("bookmark");
    let image = machine.brought_up(told[0]["id"].as_str().expect("an id"));
    assert!(needs_recovery(&image), "it was in the middle of its work");
    check_file_system(&image);
    assert!(ledger(&image) > early, "it wrote on");

    // A cycle brings over what changed: the guest appends to one file.
    let before = journals(estate.dir.path());
    estate.json(&["bookmark", "app1", "a"]);
    estate.json(&["bookmark", "app1", "b"]);
    machine.until("it is there", || machine.points("bookmark").len() == 3);
    let cycles = journals(estate.dir.path()) - before;
    assert!(cycles < 4 * MIB, "{cycles} bytes of journal for a few appended lines");

    // The agent dies in the middle of a cycle: the views it leaves in QEMU are cleared away by the next one.
    let views = estate.path("scratch/ctm-views.sock");
    let mut agent = agent;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        while !views.exists() {
            assert!(Instant::now() < deadline, "no cycle under way");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(agent);
        let mut monitor = machine.monitor();
        let exports = monitor.run("query-block-exports", json!({})).expect("a list");
        drop(monitor);
        agent = estate.serve(&config, "agent");
        if exports.as_array().is_some_and(|exports| !exports.is_empty()) {
            break;
        }
    }
    machine.until("it is whole again", || machine.is_whole());
    machine.verify();
    let mut monitor = machine.monitor();
    machine.until("nothing is left in QEMU between cycles", || {
        let jobs = monitor.run("query-jobs", json!({})).expect("a list");
        let exports = monitor.run("query-block-exports", json!({})).expect("a list");
        jobs == json!([]) && exports == json!([])
    });
    assert!(!machine.events().contains("the bitmap of"), "nothing was in doubt so far");

    // Somebody removes the bitmap: that is noticed, told, and healed by comparison.
    machine.until("the bitmap is removed", || {
        let nodes = monitor.run("query-named-block-nodes", json!({ "flat": true })).expect("a list");
        let nodes = nodes.as_array().expect("a list").clone();
        let root = nodes.iter().find(|node| node["node-name"] == "root").expect("our disk");
        let names: Vec<String> = root["dirty-bitmaps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|bitmap| bitmap["name"].as_str().map(str::to_owned))
            .collect();
        !names.is_empty()
            && names.iter().all(|name| {
                monitor.run("block-dirty-bitmap-remove", json!({ "node": "root", "name": name })).is_ok()
            })
    });
    drop(monitor);
    let before = journals(estate.dir.path());
    machine.until("it is told", || machine.events().contains("the bitmap of root is gone"));
    machine.verify();
    let healed = journals(estate.dir.path()) - before;
    assert!(healed < 6 * MIB, "{healed} bytes of journal, for what differed");

    // QEMU ends in good order and comes back: its image kept the bitmap, and nothing is in doubt.
    let gone = machine.events().matches("the bitmap of").count();
    let _ = machine.monitor().run("quit", json!({}));
    machine.qemu.take().expect("it ran").0.wait().expect("it ended");
    machine.start();
    let ticks = machine.ticks();
    machine.until("the guest writes again", || machine.ticks() > ticks);
    machine.verify();
    assert_eq!(machine.events().matches("the bitmap of").count(), gone, "{}", machine.events());

    // QEMU is killed, and its image is written to while nobody looks: that is doubt, and what differs is sent.
    machine.qemu = None;
    let write = ["-f", "qcow2", "-c", "write -P 0x5a 60M 64k"];
    ran(Command::new("qemu-io").args(write).arg(estate.path("web1.qcow2")));
    machine.start();
    machine.until("it is told", || machine.events().matches("the bitmap of").count() > gone);
    machine.verify();
    let newest = machine.brought_up("latest");
    let image = std::fs::read(&newest).expect("an image");
    assert!(image[60 << 20..][..64 << 10].iter().all(|byte| *byte == 0x5a), "no silent loss");

    // A planned failover shuts the guest down, and nothing it wrote is missing.
    let ticks = machine.ticks();
    machine.until("the guest writes once more", || machine.ticks() > ticks);
    machine.until("it is whole", || machine.is_whole());
    let failover = estate.json(&["failover", "app1", "--planned", "--yes", "--confirm", "app1"]);
    assert_eq!(failover["outcome"], "succeeded", "{failover}\n{}", estate.log());
    let status = machine.monitor().run("query-status", json!({})).expect("a status");
    assert_eq!(status["status"], "shutdown", "it shut down, and stays");
    let endpoint = failover["machines"][0]["disks"][0]["endpoint"].as_str().expect("an endpoint");
    let there = oracle::read_image(endpoint).expect("the replica is read");
    let _ = machine.monitor().run("quit", json!({}));
    machine.qemu.take().expect("it ran").0.wait().expect("it ended");
    let here = estate.path("here.raw");
    let convert = ["convert", "-f", "qcow2", "-O", "raw"];
    ran(Command::new("qemu-img").args(convert).arg(estate.path("web1.qcow2")).arg(&here));
    assert!(std::fs::read(&here).expect("an image") == there, "both sides are equal, bit for bit");
    assert!(!needs_recovery(&here), "its file system was unmounted");
    drop(agent);
}
