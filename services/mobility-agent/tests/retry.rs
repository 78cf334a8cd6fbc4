//! Which refusals an agent comes back after, and which it leaves to a person: over real sockets and certificates, with a
//! process server that refuses with whatever it is told to.

use continuum_capture::source::SourceSpec;
use continuum_capture::{FileDisk, Source, SourceConfig};
use continuum_mobility_agent::sender::{self, Course, Link, Route};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{DiskId, MachineId, VaultId};
use continuum_model::units::Epoch;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_wire::ca::Authority;
use continuum_wire::channel;
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::{self, Credentials};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);

struct Scene {
    _dir: tempfile::TempDir,
    /// What the process server refuses with.
    says: Arc<Mutex<Fault>>,
    /// How often somebody came.
    came: Arc<AtomicU64>,
    link: Arc<Mutex<Link>>,
    retry: Arc<Notify>,
    course: watch::Sender<Course>,
    route: Route,
    stop: CancellationToken,
}

fn credentials(authority: &Authority, dir: &Path, role: Role, id: &str) -> Credentials {
    let identity = Identity { vault: authority.vault(), role, id: id.to_owned() };
    let (certificate, key) = authority.make(&identity, SystemClock::default().wall()).unwrap();
    Credentials::store(&dir.join(id), authority.certificate_pem(), &certificate, &key).unwrap()
}

impl Scene {
    /// An agent whose process server refuses with this.
    async fn new(fault: Fault) -> Self {
        tls::install_provider();
        let dir = tempfile::Builder::new().prefix("ct-ma-").tempdir().unwrap();
        let now = SystemClock::default().wall();
        let authority =
            Authority::open_or_create(&dir.path().join("ca"), VaultId::from_bytes([7; 16]), now).unwrap();
        let server = credentials(&authority, dir.path(), Role::ProcessServer, "ps");
        let agent = credentials(&authority, dir.path(), Role::Agent, &MACHINE.to_string());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (says, came) = (Arc::new(Mutex::new(fault)), Arc::new(AtomicU64::new(0)));
        let stop = CancellationToken::new();
        let (fault, count) = (says.clone(), came.clone());
        let refuse = move |incoming: channel::Incoming| {
            count.fetch_add(1, Ordering::SeqCst);
            let fault = fault.lock().unwrap().clone();
            async move { incoming.refuse(&fault).await }
        };
        tokio::spawn(channel::serve(listener, server.acceptor().unwrap(), stop.clone(), refuse));
        let disk = FileDisk::open_or_create(&dir.path().join("disk"), 1 << 20).unwrap();
        let disks = vec![SourceSpec { id: DiskId::from_bytes([2; 16]), disk: Box::new(disk) }];
        let config = SourceConfig { machine: MACHINE, dir: dir.path().join("agent"), disks };
        let source = Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy).unwrap();
        let route = Route { machine: MACHINE, epoch: Epoch(1), address, server: "ps".into() };
        let (course, courses) = watch::channel(Course::Ship(route.clone()));
        let (link, retry): (Arc<Mutex<Link>>, Arc<Notify>) = Default::default();
        tokio::spawn(sender::run(
            Arc::new(source),
            agent,
            courses,
            link.clone(),
            retry.clone(),
            stop.clone(),
        ));
        Self { _dir: dir, says, came, link, retry, course, route, stop }
    }

    fn came(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }

    /// Waits until the agent was refused with this, so often.
    async fn refused(&self, code: &str, times: u64) -> Link {
        let found = async {
            loop {
                let link = self.link.lock().unwrap().clone();
                if self.came() >= times && link.fault.as_ref().is_some_and(|fault| fault.code == code) {
                    return link;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let within = tokio::time::timeout(Duration::from_secs(30), found).await;
        within.unwrap_or_else(|_| panic!("{} came, {code} was not told: {:?}", self.came(), self.link))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fault(class: FaultClass) -> Fault {
    Fault::new(class, class.name(), "no").remedy("mend it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_tried_again_and_what_a_person_must_mend_is_not() {
    for class in [FaultClass::NotConnected, FaultClass::NotReady] {
        let scene = Scene::new(fault(class)).await;
        let link = scene.refused(class.name(), 4).await;
        assert!(link.next_retry.is_some() && !link.connected, "{class:?}: {link:?}");
    }
    // Trouble that is no lost link comes after a minute, and the time is told.
    let scene = Scene::new(fault(FaultClass::Failed)).await;
    let link = scene.refused("failed", 1).await;
    let next = link.next_retry.expect("a time");
    let wait = next.since(SystemClock::default().wall());
    assert!((Duration::from_secs(30)..Duration::from_secs(70)).contains(&wait), "{wait:?}");
    let finals = [
        FaultClass::Refused,
        FaultClass::Configuration,
        FaultClass::Conflict,
        FaultClass::NotFound,
        FaultClass::Usage,
        FaultClass::WaitingForApproval,
    ];
    for class in finals {
        let scene = Scene::new(fault(class)).await;
        let link = scene.refused(class.name(), 1).await;
        assert_eq!(link.next_retry, None, "{class:?}");
        // Longer than all of the first quick attempts together would have taken.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(scene.came(), 1, "{class:?} was tried again by itself");
        // A person mended it and says so: tried at once, and what passes is tried again from there on.
        *scene.says.lock().unwrap() = fault(FaultClass::NotReady);
        scene.retry.notify_one();
        let link = scene.refused("not-ready", 3).await;
        assert!(link.next_retry.is_some(), "{class:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_course_ends_the_wait_and_the_hop_is_named() {
    let mut target = fault(FaultClass::Refused);
    target.message = format!("{}: no right", channel::TO_TARGET);
    let scene = Scene::new(fault(FaultClass::Refused)).await;
    let told = scene.refused("refused", 1).await.fault.expect("a fault");
    let here = format!("agent → process server at {}: no", scene.route.address);
    assert_eq!((told.message, told.remedy.as_str()), (here, "mend it"));
    *scene.says.lock().unwrap() = target.clone();
    // The vault says something new: another epoch.
    scene.course.send_replace(Course::Ship(Route { epoch: Epoch(2), ..scene.route.clone() }));
    let came = async {
        while scene.came() < 2
            || scene.link.lock().unwrap().fault.as_ref().map(|fault| &fault.message) != Some(&target.message)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), came)
        .await
        .expect("the target's fault is told as the target's");
    // Nobody there at all.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    scene.course.send_replace(Course::Ship(Route { address: nobody.clone(), ..scene.route.clone() }));
    let link = scene.refused("connect.failed", 2).await;
    let told = link.fault.expect("a fault").message;
    assert!(told.starts_with(&format!("agent → process server at {nobody}: ")), "{told}");
    assert!(link.next_retry.is_some());
}
