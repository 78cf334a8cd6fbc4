//! An estate of a hundred thousand machines: what is drawn costs what is shown.

use crate::picture::{draw, lines};
use crate::scene::{self, Console};
use continuum_console::tui::theme::Depth;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use std::time::Instant;

const MACHINES: usize = 100_000;

#[test]
fn a_hundred_thousand_machines_are_one_screen() {
    let estate = (0..MACHINES)
        .map(|n| {
            let health = if n % 1000 == 7 { "critical" } else { "healthy" };
            let name = format!("vm-{n:06}");
            let id = format!("01a20000-0000-7000-8000-{n:012x}");
            // The worst comes last in the snapshot, and first on the screen.
            Entity::Machine(pb::Machine {
                id,
                health: health.into(),
                churn_recent: Vec::new(),
                rpo_recent: Vec::new(),
                ..scene::machine(1, &name)
            })
        })
        .collect();
    let begun = Instant::now();
    let mut console = Console::with((120, 40), estate);
    let told = begun.elapsed();
    let text = lines(&draw(&console.state, "default", Depth::True, false)).join("\n");
    assert!(text.contains("100 machines need help now"), "{text}");
    assert!(text.contains("vm-000007"), "{text}");
    let timed = |console: &mut Console, keys: &str| {
        let begun = Instant::now();
        console.press(keys);
        let picture = draw(&console.state, "default", Depth::True, false);
        (begun.elapsed(), lines(&picture).join("\n"))
    };
    let (open, text) = timed(&mut console, "3");
    assert!(text.contains("Machines  100000") && text.contains("vm-000000"), "{text}");
    let (moved, _) = timed(&mut console, "j");
    let (filtered, text) = timed(&mut console, "/'099999");
    assert!(text.contains("1 of 100000") && text.contains("vm-099999"), "{text}");
    let (last, text) = timed(&mut console, "<esc>G");
    assert!(text.contains("vm-099999"), "{text}");
    println!(
        "told in {told:?}, opened {open:?}, moved {moved:?}, filtered {filtered:?}, to the end {last:?}"
    );
}
