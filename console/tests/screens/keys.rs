//! Whatever is typed: nothing is ordered that was not agreed to.

use crate::picture::draw;
use crate::scene::{self, Console};
use continuum_console::tui::cmd::keys::{Chord, Code};
use continuum_console::tui::cmd::{Risk, entry_of};
use continuum_console::tui::core::dialog::Stage;
use continuum_console::tui::core::reduce::update;
use continuum_console::tui::core::state::{Effect, Message};
use continuum_console::tui::theme::Depth;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Act {
    Key(Chord),
    Paste(String),
    Resize(u16, u16),
    Later(i64),
    Answer,
    Change(u8),
    Wheel(isize),
    Click(u16, u16),
}

fn act() -> impl Strategy<Value = Act> {
    let letters = prop_oneof![
        Just('y'),
        Just('a'),
        Just('t'),
        Just('f'),
        Just('x'),
        Just('c'),
        Just('u'),
        Just('b'),
        Just('p'),
        Just(':'),
        Just('/'),
        Just(' '),
        Just('?'),
        Just('n'),
        Just('q'),
        Just('1'),
        Just('3'),
        Just('5'),
        Just('6'),
        Just('4'),
        Just('8'),
        Just('9'),
        Just('e'),
        Just('i'),
        Just('d'),
        Just('-'),
        Just('0'),
        any::<char>(),
    ];
    let plain = prop_oneof![
        Just(Code::Enter),
        Just(Code::Esc),
        Just(Code::Tab),
        Just(Code::BackTab),
        Just(Code::Down),
        Just(Code::Up),
        Just(Code::Left),
        Just(Code::Right),
        Just(Code::Backspace),
        Just(Code::Home),
        Just(Code::End),
        Just(Code::PageDown),
        Just(Code::PageUp),
        Just(Code::Delete),
    ];
    prop_oneof![
        8 => letters.prop_map(|letter| Act::Key(Chord::char(letter))),
        6 => plain.prop_map(|code| Act::Key(Chord::plain(code))),
        1 => proptest::char::range('a', 'z').prop_map(|letter| Act::Key(Chord::ctrl(letter))),
        1 => prop_oneof![Just("db-01".to_owned()), Just("y\n".to_owned()), Just("app-01".to_owned())]
            .prop_map(Act::Paste),
        1 => (0u16..220, 0u16..60).prop_map(|(columns, rows)| Act::Resize(columns, rows)),
        1 => (0i64..20_000_000).prop_map(Act::Later),
        3 => Just(Act::Answer),
        1 => (0u8..8).prop_map(Act::Change),
        1 => (-3isize..4).prop_map(Act::Wheel),
        1 => (0u16..220, 0u16..60).prop_map(|(column, row)| Act::Click(column, row)),
    ]
}

/// Takes one message as the console does, and judges every order that it leads to.
fn judged(console: &mut Console, message: Message) {
    let before = console.state.dialog.clone();
    let pasted = matches!(message, Message::Paste(_));
    let effects = update(&mut console.state, message, console.now);
    console.state.refresh();
    for effect in effects {
        if let Effect::Order(..) = &effect {
            assert!(!pasted, "a paste ordered something");
            match &before {
                // What can lose nothing is done at once, without a dialog.
                None => {
                    let pending = console.state.pending.values().map(|pending| pending.action);
                    assert!(pending.into_iter().any(|action| entry_of(action).risk == Risk::None));
                }
                Some(dialog) => {
                    assert!(dialog.armed, "agreed to before it stood on the screen");
                    match dialog.stage() {
                        // A form was looked through, and its report agreed to, before any of it goes out.
                        Stage::Ask => assert_ne!(entry_of(dialog.action).risk, Risk::Danger),
                        Stage::Type => assert!(dialog.is_typed(), "the name was not typed out"),
                        stage @ (Stage::Asking | Stage::Blocked) => panic!("ordered while {stage:?}"),
                    }
                }
            }
        }
        // Who is let in is changed by the same road.
        if matches!(effect, Effect::Token(..) | Effect::Revoke(..)) {
            assert!(
                !pasted && before.as_ref().is_some_and(|dialog| dialog.armed && dialog.stage() == Stage::Ask)
            );
        }
        if effect == Effect::Arm {
            judged(console, Message::Armed);
        }
        console.effects.push(effect);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ordered_without_agreement_and_nothing_panics(acts in prop::collection::vec(act(), 1..120)) {
        let mut console = Console::night((80, 24));
        for act in acts {
            match act {
                Act::Key(chord) => judged(&mut console, Message::Key(chord)),
                Act::Paste(text) => judged(&mut console, Message::Paste(text)),
                Act::Resize(columns, rows) => judged(&mut console, Message::Resize(columns, rows)),
                Act::Wheel(lines) => judged(&mut console, Message::Wheel(lines)),
                Act::Click(column, row) => judged(&mut console, Message::Click(column, row)),
                Act::Later(micros) => {
                    console.now += micros;
                    judged(&mut console, Message::Tick);
                }
                Act::Answer => console.answered(),
                Act::Change(id) => {
                    let mut machine = scene::machine(id, "app-01");
                    machine.version = 8;
                    console.changed(Entity::Machine(machine));
                }
            }
            console.state.refresh();
        }
        draw(&console.state, "default", Depth::True, false);
    }
}

#[test]
fn the_ladder_holds_for_every_dangerous_order() {
    for keys in ["3af", "3ao", "3au"] {
        for (why, typed, agreed) in [
            ("enter alone cancels", "<enter>", false),
            ("y is a letter of the name", "y<enter>", false),
            ("the wrong name", "db-02<tab><enter>", false),
            ("nearly the name", "db-01 <tab><enter>", false),
            ("another case", "DB-01<tab><enter>", false),
            ("the name without the button", "db-01<enter>", false),
            ("escape", "db-01<tab><esc>", false),
            ("the name, the button", "db-01<tab><enter>", true),
        ] {
            let mut console = Console::night((80, 24));
            console.press("3/db-01<enter>");
            console.press(keys.trim_start_matches('3'));
            console.answered();
            assert!(console.state.dialog.is_some(), "{keys}: {:?}", console.state.toasts);
            console.press(typed);
            assert_eq!(console.orders().len(), usize::from(agreed), "{keys}: {why}");
            if let Some(order) = console.orders().first() {
                assert_eq!((order.confirm.as_str(), order.expected_version), ("db-01", 7));
            }
        }
        // A paste is no typing.
        let mut console = Console::night((80, 24));
        console.press("3/db-01<enter>");
        console.press(keys.trim_start_matches('3'));
        console.answered();
        console.take(Message::Paste("db-01".into()));
        console.press("<tab><enter>");
        assert!(console.orders().is_empty());
    }
}

#[test]
fn a_plan_is_drilled_with_a_yes_and_failed_over_with_its_name() {
    use pb::order_request::Order;
    let mut console = Console::night((80, 24));
    console.press("4t");
    console.answered();
    assert!(console.orders().is_empty());
    console.press("y");
    let orders = console.orders();
    assert_eq!((orders.len(), orders[0].expected_version), (1, 4));
    let Some(Order::RunPlan(run)) = &orders[0].order else { panic!("{orders:?}") };
    assert_eq!(
        (run.plan.as_str(), run.kind.as_str(), run.point.as_str()),
        ("shop", "test-failover", "latest")
    );
    for (typed, agreed) in [("y<enter>", false), ("plan/shop<tab><enter>", false), ("shop<tab><enter>", true)]
    {
        let mut console = Console::night((80, 24));
        console.press("4af");
        console.answered();
        console.press(typed);
        assert_eq!(console.orders().len(), usize::from(agreed), "{typed}");
        if let Some(order) = console.orders().first() {
            assert_eq!(order.confirm, "shop");
        }
    }
    // Its text changed while the question stood there.
    let mut console = Console::night((80, 24));
    console.press("4t");
    console.answered();
    console.changed(Entity::Plan(pb::Plan { version: 5, ..scene::plan() }));
    console.press("y");
    assert!(console.orders().is_empty());
    // What is for machines is not offered for a plan.
    let mut console = Console::night((80, 24));
    console.press("4au");
    assert!(console.state.dialog.is_none());
}

#[test]
fn what_was_typed_before_the_question_is_no_answer() {
    let mut console = Console::night((80, 24));
    console.press("3/app<enter>");
    // `t` opens the dialog; the report comes later, and only then does it ask.
    console.press("tyyy<enter>");
    assert!(console.orders().is_empty());
    console.answered();
    assert!(console.orders().is_empty(), "typed before the report stood there");
    console.press("y");
    assert_eq!(console.orders().len(), 1);
}

#[test]
fn a_machine_that_changed_meanwhile_closes_the_question() {
    let mut console = Console::night((80, 24));
    console.press("3/app<enter>t");
    console.answered();
    let machine = pb::Machine { version: 9, state: "failed-over".into(), ..scene::machine(3, "app-01") };
    console.changed(Entity::Machine(machine));
    console.press("y<enter>");
    assert!(console.orders().is_empty());
    assert!(console.state.toasts.iter().any(|toast| toast.text.contains("changed meanwhile")));
}
