//! An operator at the console.

use crate::scene;
use crate::screen::{Screen, vault};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use std::time::Duration;

#[test]
fn a_drill_by_keys_at_both_sizes() {
    for size in [(80, 24), (200, 50)] {
        let vault = vault();
        let mut screen = Screen::live(&vault, size, &[]);
        screen.press("3/app\rt");
        screen.shows("y orders, n or Esc cancels");
        screen.settle();
        assert!(vault.world().orders.is_empty(), "nothing before it was agreed to");
        screen.press("y");
        screen.shows("Test failover of app-01: running");
        let machine = scene::machine(3, "app-01").id;
        {
            let world = vault.world();
            assert_eq!(world.orders.len(), 1);
            assert_eq!((&world.orders[0].machine, world.orders[0].expected_version), (&machine, 7));
        }
        vault.change(Entity::Job(pb::Job {
            machine: "app-01".into(),
            machine_id: machine,
            ..scene::drill("succeeded")
        }));
        screen.shows("Test failover of app-01: succeeded");
        assert!(screen.text().contains("every record checked"), "{}", screen.text());
    }
}

#[test]
fn a_pasted_name_agrees_to_nothing_and_a_typed_one_does() {
    let vault = vault();
    {
        let mut world = vault.world();
        world.readiness = Ok(pb::ReadinessReply {
            confirm: "app-01".into(),
            destroys: true,
            ..world.readiness.clone().unwrap()
        });
    }
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    screen.press("3/app\raf");
    screen.shows("Type its name to agree: app-01");
    screen.settle();
    screen.press("\u{1b}[200~app-01\u{1b}[201~");
    screen.shows("a paste is refused here");
    screen.press("\t\r");
    screen.shows("what is typed is not what must be typed");
    assert!(vault.world().orders.is_empty());
    screen.press("app-01\r");
    screen.shows("Failover of app-01");
    assert_eq!(vault.world().orders[0].confirm, "app-01");
}

#[test]
fn a_key_torn_by_a_slow_line_is_one_key() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")]);
    screen.press("3");
    screen.shows("Machines  6");
    screen.settle();
    for part in ["\u{1b}", "[", "B"] {
        screen.press(part);
        // The line takes its time between two packets.
        screen.sent_within(Duration::from_millis(15));
    }
    screen.until("the second row", |screen| {
        screen.text().lines().any(|line| line.starts_with('▶') && line.contains("db-01"))
    });
    screen.settle();
    assert!(screen.text().contains("Machines  6"), "no letter of it was a command:\n{}", screen.text());
    assert!(vault.world().orders.is_empty());
}

#[test]
fn a_still_screen_is_silent_and_a_move_is_cheap() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (200, 50), &[]);
    screen.press("3");
    screen.shows("Machines  6");
    screen.settle();
    // The clock in the corner may turn once in this time.
    let (mut silent, minute) = (false, |screen: &Screen| screen.text().lines().next().map(str::to_owned));
    for _ in 0..2 {
        let before = minute(&screen);
        let sent = screen.sent_within(Duration::from_millis(2500));
        silent |= sent == 0;
        assert!(sent == 0 || minute(&screen) != before, "{sent} bytes of a still screen");
    }
    assert!(silent);
    // Where it rests, what is known of its row follows beside the table.
    screen.press("j");
    let before = screen.sent.len();
    screen.until("the second row", |screen| {
        screen.text().lines().any(|line| line.starts_with('▶') && line.contains("db-01"))
    });
    let moved = screen.sent.len() - before;
    // A reader that was held up sees both at once.
    let at_once = screen.text().contains("bitmap: the process server is away");
    let followed = screen.settle();
    assert!((1..=1024).contains(&moved) || at_once, "{moved} bytes for a move of the cursor");
    assert!((1..=4096).contains(&(moved + followed)), "{moved} and {followed} bytes with the pane beside it");
    assert!(screen.text().contains("bitmap: the process server is away"), "{}", screen.text());
    screen.press("6");
    let page = screen.settle();
    assert!((1..=8192).contains(&page), "{page} bytes for another page");
    println!("a move {moved} bytes, the pane {followed}, a page {page} bytes at 200x50");
}

#[test]
fn the_terminal_is_never_asked_anything() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    screen.press("2356781\r\t\t\t\u{1b}");
    screen.settle();
    screen.resize(120, 40);
    screen.settle();
    screen.press("q");
    screen.settle();
    let sent = String::from_utf8_lossy(&screen.sent).into_owned();
    for question in
        ["\u{1b}[6n", "\u{1b}[c", "\u{1b}[0c", "\u{1b}[?6n", "\u{1b}[5n", "\u{1b}]11;?", "\u{1b}[?u"]
    {
        assert!(!sent.contains(question), "{question:?}");
    }
}

#[test]
fn without_colours_there_are_none_but_weight_and_reverse_stay() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[("NO_COLOR", "1")]);
    screen.press("3");
    screen.settle();
    let screen_now = screen.parser.screen();
    let cells = (0..24).flat_map(|row| (0..80).filter_map(move |column| screen_now.cell(row, column)));
    let mut weighty = 0;
    for cell in cells {
        assert_eq!((cell.fgcolor(), cell.bgcolor()), (vt100::Color::Default, vt100::Color::Default));
        weighty += usize::from(cell.bold() || cell.inverse());
    }
    assert!(weighty > 10, "titles and the cursor's row are still told apart");
    let sent = String::from_utf8_lossy(&screen.sent).into_owned();
    for colour in ["\u{1b}[38;", "\u{1b}[48;", "\u{1b}[31m", "\u{1b}[32m"] {
        assert!(!sent.contains(colour), "{colour:?}");
    }
}

#[test]
fn another_size_is_another_picture_at_once() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    for (columns, rows) in [(200, 50), (60, 15), (30, 8), (120, 40), (80, 24)] {
        screen.resize(columns, rows);
        let wanted = if columns < 60 { "60" } else { "db-01" };
        screen.shows(wanted);
        screen.settle();
        assert!(screen.text().lines().count() <= usize::from(rows));
    }
}

#[test]
fn a_vault_that_goes_away_and_comes_back_is_told_and_nothing_is_lost() {
    let mut vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    screen.press("3");
    screen.shows("Machines  6");
    vault.down();
    screen.shows("CONNECTION LOST");
    screen.shows("read only");
    assert!(screen.text().contains("db-01"), "what was known stays");
    screen.press("t");
    screen.shows("read only until it does");
    vault.up();
    screen.shows("connected again");
    screen.shows("live");
    assert!(vault.world().orders.is_empty());
}

#[test]
fn keys_and_themes_are_read_again_when_they_change() {
    let vault = vault();
    let config = vault.path().join("config");
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    std::fs::write(config.join("keys.toml"), "[global]\n\"Z\" = \"go.alerts\"\n").unwrap();
    screen.sent_within(Duration::from_millis(2500));
    screen.press("Z");
    screen.shows("Alerts  2");
    std::fs::write(config.join("keys.toml"), "[global]\n\"Z\" = \"no-such-action\"\n").unwrap();
    screen.shows("keys.toml: ");
}

#[test]
fn a_storm_of_sizes_and_of_bytes_that_are_no_text_harms_nothing() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    for n in 0..200u16 {
        screen.resize(1 + n * 7 % 240, 1 + n * 5 % 70);
    }
    screen.resize(80, 24);
    screen.shows("db-01");
    // Not UTF-8, cut sequences, controls, a paste that is never ended properly.
    screen.press_bytes(b"\xff\xfe\xc3\x28\x00\x01\x1b[\x1b]52;c;eXl5\x07\x1b[200~yyy\r\xff\x1b[201~\x1b");
    screen.settle();
    screen.press("3");
    screen.shows("Machines  6");
    assert!(vault.world().orders.is_empty());
    screen.press("\u{3}\u{3}");
    assert_eq!(screen.ended().code(), Some(0));
    screen.is_given_back();
}
