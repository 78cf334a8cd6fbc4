//! Text from outside, wherever it may stand, at every size: nothing of it reaches the terminal as a command.

use crate::picture::draw;
use crate::scene::{self, Console};
use continuum_console::tui::theme::Depth;
use continuum_model::untrusted::is_dangerous;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use unicode_width::UnicodeWidthStr;

const HOSTILE: [&str; 14] = [
    "\u{1b}]52;c;ZXZpbA==\u{7}pasted",
    "\u{1b}[2J\u{1b}[H\u{1b}[31mred",
    "\u{9b}31mc1",
    "a\nb\r\nc\td\u{8}e\u{0}f",
    "\u{202e}10-bew\u{202c}",
    "\u{2066}iso\u{2069}\u{200f}",
    "zero\u{200b}width\u{feff}\u{2060}",
    "e\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}\u{307}\u{308}zalgo",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} family \u{1f1e9}\u{1f1ea}",
    "日本語の名前がとても長いので切られます日本語の名前がとても長い",
    "",
    " ",
    "\u{e0041}\u{e0042}tag\u{fff9}\u{fffb}",
    "x\u{1b}Pq#0;2;0;0;0\u{1b}\\y\u{1b}_G\u{1b}\\z\u{2028}\u{2029}",
];

fn estate(text: &str) -> Vec<Entity> {
    let long = text.repeat(200);
    let mut entities = scene::estate();
    for entity in &mut entities {
        match entity {
            Entity::Site(site) => (site.name, site.fabric) = (format!("{text}{}", site.name), long.clone()),
            Entity::Server(server) => {
                server.name = text.into();
                server.version = long.clone();
                server.address = text.into();
            }
            Entity::Machine(machine) => {
                machine.name = format!("{text}{}", machine.name);
                machine.state_reason = long.clone();
                machine.mode_reason = text.into();
                machine.policy = text.into();
                machine.site = long.clone();
                for symptom in &mut machine.symptoms {
                    (symptom.text, symptom.remedy) = (text.into(), long.clone());
                }
                for disk in &mut machine.disks {
                    (disk.name, disk.endpoint) = (text.into(), long.clone());
                }
            }
            Entity::Policy(policy) => policy.name = text.into(),
            Entity::Plan(plan) => {
                (plan.name, plan.description) = (text.into(), long.clone());
                plan.problems = vec![long.clone()];
                for group in &mut plan.groups {
                    (group.name, group.manual) = (text.into(), long.clone());
                    group.depends_on = vec![text.into()];
                    for machine in &mut group.machines {
                        machine.name = text.into();
                    }
                }
            }
            Entity::Group(group) => group.name = text.into(),
            Entity::Job(job) => {
                (job.machine, job.detail, job.by) = (text.into(), long.clone(), text.into());
                for step in &mut job.steps {
                    (step.name, step.detail) = (text.into(), long.clone());
                }
                for machine in &mut job.machines {
                    machine.note = long.clone();
                }
            }
            Entity::Alert(alert) => {
                (alert.object, alert.text, alert.cause) = (text.into(), long.clone(), text.into());
                alert.remedy = text.into();
            }
            Entity::Event(event) => {
                (event.text, event.by, event.kind) = (text.into(), long.clone(), text.into())
            }
        }
    }
    entities
}

#[test]
fn no_cell_holds_anything_dangerous_at_any_size() {
    for text in HOSTILE {
        for size in [(1, 1), (60, 15), (80, 24), (200, 50)] {
            for keys in [
                "",
                "2",
                "3",
                "3a",
                "3t",
                "3af",
                "3ab",
                "3/web-02<enter>ap",
                "<enter>",
                "<enter><tab>",
                "<enter><tab><tab>",
                "<enter><tab><tab><tab>",
                "5",
                "5<enter>",
                "6",
                "6<enter>",
                "7",
                "4",
                "4t",
                "4a",
                "8",
                "?",
                ":open ",
                "3/web",
                "3c",
            ] {
                let mut console = Console::with(size, estate(text));
                console.press(keys);
                console.answered();
                let picture = draw(&console.state, "default", Depth::True, false);
                for cell in picture.content() {
                    let symbol = cell.symbol();
                    assert!(!symbol.chars().any(is_dangerous), "{text:?} {keys}: {symbol:?}");
                    assert!(symbol.width() <= 2, "{text:?} {keys}: {symbol:?} is wider than a cell can be");
                }
                for effect in &console.effects {
                    if let continuum_console::tui::core::state::Effect::Copy(copied) = effect {
                        assert!(!copied.chars().any(is_dangerous), "{copied:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_names_that_look_alike_are_told_apart_and_confirmed_by_id() {
    let mut twins = vec![
        Entity::Machine(scene::machine(1, "web-01")),
        Entity::Machine(scene::machine(2, "w\u{435}b-01")),
    ];
    twins.push(Entity::Site(scene::site(2, "recovery", true)));
    let mut console = Console::with((80, 24), twins);
    console.press("3af");
    console.answered();
    console.press("web-01<tab><enter>");
    assert!(console.orders().is_empty(), "a name that another machine seems to have confirms nothing");
    let dialog = console.state.dialog.as_ref().expect("the dialog stands");
    assert!(dialog.types_id);
    let id = dialog.must_type.clone();
    console.press("<esc>af");
    console.answered();
    console.press(&id);
    console.press("<tab><enter>");
    assert_eq!(console.orders().len(), 1);
}
