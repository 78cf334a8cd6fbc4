//! Every screen at every size, as stored: text and styles.

use crate::picture::{draw, is_as_stored, lines};
use crate::scene::{self, Console, MINUTE, NOW, SECOND};
use continuum_console::link::watch::News;
use continuum_console::tui::core::state::{Message, State};
use continuum_console::tui::theme::Depth;
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use std::time::Duration;

const SIZES: [(u16, u16); 4] = [(60, 15), (80, 24), (120, 40), (200, 50)];

/// Keys from the start, and what the screen is called.
const SCREENS: [(&str, &str); 20] = [
    ("pulse", ""),
    ("sites", "2"),
    ("machines", "3"),
    ("machines-filtered", "3/file<enter>"),
    ("machines-marked", "3<space><down><space>"),
    ("columns", "3c"),
    ("overview", "1<enter>"),
    ("disks", "1<enter><tab>"),
    ("points", "1<enter><tab><tab>"),
    ("events", "1<enter><tab><tab><tab>"),
    ("jobs", "5"),
    ("run", "5<enter>"),
    ("alerts", "6"),
    ("servers", "7"),
    ("policies", "8"),
    ("plans", "4"),
    ("plans-menu", "4a"),
    ("menu", "3a"),
    ("palette", ":test"),
    ("help", "?"),
];

#[test]
fn every_screen_at_every_size_is_as_stored() {
    for size in SIZES {
        for (name, keys) in SCREENS {
            let mut console = Console::night(size);
            console.press(keys);
            console.answered();
            // The pane beside the table follows once the cursor rests.
            console.later(SECOND / 5);
            is_as_stored(name, &draw(&console.state, "default", Depth::True, false));
        }
    }
}

#[test]
fn forms_are_as_stored() {
    let shorter = "8<down>e<down><ctrl+u>8 h";
    let wrong = "8e<down><ctrl+u>soon";
    let review = format!("{shorter}<up><up><up><enter>");
    for size in [(60, 15), (80, 24), (200, 50)] {
        for (name, keys) in [
            ("form-policy", "8e"),
            ("form-policy-changed", shorter),
            ("form-policy-wrong", wrong),
            ("form-policy-review", &review),
            ("form-policy-text", "8e<ctrl+e>"),
            ("form-policy-new", "8n"),
            ("form-plan-new", "4n"),
            ("form-plan-wrong", "4e<ctrl+u>  x: [<enter>"),
            ("dialog-set-policy", "3ai"),
            ("dialog-delete-policy", "8d"),
        ] {
            let mut console = Console::night(size);
            console.press(keys);
            console.answered();
            console.later(SECOND);
            is_as_stored(name, &draw(&console.state, "default", Depth::True, false));
            let plain = draw(&console.state, "mono", Depth::None, true);
            assert!(lines(&plain).join("\n").is_ascii(), "{name}: {}", lines(&plain).join("\n"));
            assert!(console.orders().is_empty(), "{name}: looking orders nothing");
        }
    }
}

#[test]
fn a_policy_is_changed_by_keys_only_after_its_report_was_agreed_to() {
    let mut console = Console::night((80, 24));
    console.press("8e<down><ctrl+u>8 h");
    console.take(Message::Paste("\n".into()));
    assert!(console.orders().is_empty(), "a paste orders nothing");
    console.press("<up><up><up><enter>");
    console.answered();
    assert!(console.orders().is_empty() && console.state.dialog.is_some());
    console.press("<esc>");
    assert!(console.state.dialog.is_none() && console.state.form.is_some(), "back in the form");
    console.press("<enter>");
    console.answered();
    let typed = console.state.dialog.as_ref().map(|dialog| dialog.must_type.clone()).unwrap_or_default();
    console.press(&format!("{typed}<tab><enter>"));
    let orders = console.orders();
    let [order] = orders.as_slice() else { panic!("{orders:?}") };
    let Some(pb::order_request::Order::SetPolicy(set)) = &order.order else { panic!("{order:?}") };
    let policy = set.policy.as_ref().expect("a policy");
    assert_eq!((policy.retention_seconds, order.confirm.as_str()), (8 * 3600, typed.as_str()));
    assert!(!policy.id.is_empty() && order.expected_version > 0, "{order:?}");
}

#[test]
fn dialogs_are_as_stored() {
    for size in [(60, 15), (80, 24), (200, 50)] {
        for (name, keys) in [
            ("dialog-drill", "3t"),
            ("dialog-failover", "3af"),
            ("dialog-failover-typed", "3af"),
            ("dialog-plan-drill", "4t"),
            ("dialog-plan-failover", "4af"),
            ("dialog-bookmark", "3ab"),
            ("dialog-protect", "3/web-02<enter>ap"),
        ] {
            let mut console = Console::night(size);
            console.press(keys);
            console.answered();
            if name.ends_with("typed") {
                console.press("db-0");
            }
            console.later(SECOND);
            is_as_stored(name, &draw(&console.state, "default", Depth::True, false));
        }
    }
}

/// The first machine of the night, with what each hop has and a spike that goes on.
fn spiking() -> continuum_proto::v1::Machine {
    use continuum_proto::v1 as pb;
    let cause = "the link from ps-1 to mt-1 takes 1.0 MiB/s, 6.0 MiB/s are written: 180.0 MiB wait before it, 2.0 MiB are on it";
    let hop = |name: &str, age: f64, bytes: u64| pb::Hop {
        name: name.into(),
        newest_us: Some(NOW - (age * 1e6) as i64),
        age_seconds: Some(age),
        bytes: Some(bytes),
        ..Default::default()
    };
    pb::Machine {
        rpo_seconds: Some(31.0),
        rpo_max_seconds: Some(95.0),
        hops: vec![
            pb::Hop {
                bytes_per_sec: Some(1 << 20),
                bytes_max: Some(8 << 30),
                full_seconds: Some(1500.0),
                ..hop("agent", 0.1, 90 << 20)
            },
            hop("agent-link", 9.0, 4 << 20),
            pb::Hop {
                bytes_per_sec: Some(1 << 20),
                bytes_max: Some(2 << 30),
                ..hop("process-server", 12.0, 180 << 20)
            },
            pb::Hop { note: cause.into(), ..hop("target-link", 30.0, 2 << 20) },
            hop("target", 31.0, 0),
        ],
        spikes: vec![
            pb::Spike {
                started_us: NOW - 31 * SECOND,
                ended_us: None,
                worst_seconds: 31.0,
                hop: "target-link".into(),
                cause: cause.into(),
            },
            pb::Spike {
                started_us: NOW - 50 * MINUTE,
                ended_us: Some(NOW - 48 * MINUTE),
                worst_seconds: 95.0,
                hop: "process-server".into(),
                cause: "ps-1 has said nothing for 94 s".into(),
            },
        ],
        ..scene::machine(2, "file-01")
    }
}

#[test]
fn a_spike_of_rpo_is_told_with_its_cause_where_it_is_looked_for() {
    use continuum_proto::v1 as pb;
    use pb::entity::Entity;
    let waiting = pb::Machine {
        state: "initial-replication".into(),
        phase: "waiting-for-start".into(),
        start_at_us: Some(NOW + 6 * scene::HOUR),
        ..scene::machine(4, "mail-01")
    };
    let comparing = pb::Machine {
        state: "resync".into(),
        state_reason: "ordered by lab".into(),
        phase: "comparing".into(),
        mode: "catching-up".into(),
        mode_reason: "an operator ordered a resync: all of source and replica is compared".into(),
        compared_bytes: Some(12 << 30),
        to_compare_bytes: Some(40 << 30),
        copy_bytes_per_sec: Some(500 << 20),
        estimate_seconds: Some(57.0),
        ..scene::machine(5, "web-01")
    };
    for size in [(80, 24), (200, 50)] {
        let mut console = Console::night(size);
        console.changed(Entity::Machine(spiking()));
        console.changed(Entity::Machine(waiting.clone()));
        console.changed(Entity::Machine(comparing.clone()));
        console.later(SECOND / 5);
        let pulse = draw(&console.state, "default", Depth::True, false);
        let text = lines(&pulse).join("\n");
        assert!(text.contains("file-01: RPO 31 s (target-link)"), "{text}");
        is_as_stored("spike-pulse", &pulse);
        for (name, keys) in
            [("spike-overview", "3/file<enter><enter>"), ("resync-overview", "3/web-01<enter><enter>")]
        {
            console.press(keys);
            console.later(SECOND / 5);
            is_as_stored(name, &draw(&console.state, "default", Depth::True, false));
            console.press("<esc><esc>");
        }
    }
}

#[test]
fn the_lost_connection_keeps_what_was_known() {
    for size in [(80, 24), (200, 50)] {
        let mut console = Console::night(size);
        console.press("3");
        let fault = Fault::new(FaultClass::NotConnected, "vault.unreachable", "the vault does not answer")
            .remedy("see whether the vault runs; it is tried again");
        let lost = News::Lost { fault, again_in: Duration::from_secs(3), failures: 2 };
        console.take(Message::News(1, Box::new(lost)));
        console.later(MINUTE);
        let picture = draw(&console.state, "default", Depth::True, false);
        let text = lines(&picture).join("\n");
        assert!(text.contains("db-01") && text.contains("OFFLINE 1 m"), "{text}");
        is_as_stored("lost", &picture);
        // And no order can be given.
        console.press("t<enter>y");
        assert!(console.orders().is_empty());
    }
}

#[test]
fn before_anything_is_known_the_screen_says_what_happens() {
    let mut state = State::new(NOW, (80, 24));
    state.refresh();
    is_as_stored("start", &draw(&state, "default", Depth::True, false));
    state.start_lines = vec!["starting the vault".into(), "starting the process server".into()];
    is_as_stored("start-lines", &draw(&state, "default", Depth::True, false));
    state.size = (40, 10);
    let text = lines(&draw(&state, "default", Depth::True, false)).join("\n");
    assert!(text.contains("60"), "a terminal that is too small is told what is needed: {text}");
}

#[test]
fn without_colours_every_state_still_has_its_mark_or_word() {
    for theme in ["default", "light", "high-contrast", "deuteranopia", "mono"] {
        let console = Console::night((80, 24));
        for depth in [Depth::True, Depth::None] {
            is_as_stored(
                &format!("theme-{theme}-{}", if depth == Depth::None { "none" } else { "true" }),
                &draw(&console.state, theme, depth, false),
            );
        }
    }
    let console = Console::night((80, 24));
    let picture = draw(&console.state, "default", Depth::None, true);
    let text = lines(&picture).join("\n");
    assert!(text.is_ascii(), "{text}");
    for word in ["db-01", "file-01", "mail-01"] {
        assert!(text.contains(word), "{text}");
    }
    is_as_stored("ascii", &picture);
    // No colour at all where there is to be none.
    for y in 0..24 {
        for x in 0..80 {
            let style = picture[(x, y)].style();
            let none = |colour: Option<ratatui::style::Color>| {
                colour.is_none_or(|colour| colour == ratatui::style::Color::Reset)
            };
            assert!(none(style.fg) && none(style.bg), "{x},{y}: {style:?}");
        }
    }
}

#[test]
fn a_drill_by_keys_from_the_first_screen_to_its_end() {
    for size in [(80, 24), (200, 50)] {
        let mut console = Console::night(size);
        // The worst machine is under the cursor; the drill is of another one.
        console.press("3/app<enter>t");
        console.answered();
        assert!(console.orders().is_empty(), "nothing before it was agreed to");
        console.press("y");
        let orders = console.orders();
        assert_eq!(orders.len(), 1);
        assert_eq!(orders[0].machine, scene::machine(3, "app-01").id);
        assert_eq!(orders[0].expected_version, 7);
    }
}
