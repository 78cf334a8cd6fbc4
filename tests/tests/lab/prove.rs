//! Bringing a machine up at a moment and proving what is there.

use continuum_model::time::Timestamp;
use continuum_tests::lab::{Lab, brought_up};
use continuum_tests::oracle::{self, History, Workload};

/// Ends a workload when dropped: whatever fails meanwhile, a scope with its writers comes to its end.
pub struct EndOfWork<'a>(pub &'a Workload);

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Brings a machine up at the moment that was asked for, proves that its disks are, together, a state the source
/// was in, and removes it again. Returns how much of what was acknowledged before that moment is not in it, in
/// seconds.
#[track_caller]
pub fn bring_up_and_prove(lab: &Lab, machine: &str, history: &History, asked: i64) -> f64 {
    let text = Timestamp::from_micros(asked).to_string();
    let answer = lab.json(&["test-failover", machine, "--point", &text]);
    let (disks, time) = brought_up(&answer);
    assert!(time <= asked, "a moment later than asked for");
    let acknowledged = history.writes.iter().filter_map(|write| write.completed_us());
    let last = acknowledged.filter(|at| *at <= asked).max().unwrap_or(time);
    let lost = (last - time).max(0) as f64 / 1e6;
    println!("{machine} asked {text}: {:.3} s earlier, {lost:.3} s lost", (asked - time) as f64 / 1e6);
    let images: Vec<_> =
        disks.iter().map(|disk| oracle::read_image(disk).expect("the disk is served")).collect();
    let slices: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let violations = oracle::prove(&slices, history, time);
    assert!(
        violations.is_empty(),
        "{machine} at {text} (answered {time}): {} violations, first {:?}",
        violations.len(),
        &violations[..violations.len().min(3)]
    );
    assert_eq!(lab.run(&["cleanup", machine]).code, 0);
    lost
}
