//! The terminal is given back, whatever ends the console.

use crate::screen::{Screen, vault};
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;

#[test]
fn leaving_by_key_gives_the_terminal_back() {
    let vault = vault();
    for keys in ["q", "\u{3}\u{3}", ":quit\r"] {
        let mut screen = Screen::live(&vault, (80, 24), &[]);
        assert!(screen.is_taken());
        screen.press(keys);
        assert_eq!(screen.ended().code(), Some(0), "{keys:?}");
        screen.is_given_back();
    }
}

#[test]
fn every_signal_gives_the_terminal_back() {
    let vault = vault();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let mut screen = Screen::live(&vault, (80, 24), &[]);
        assert!(screen.is_taken());
        screen.signal(signal);
        let status = screen.ended();
        assert!(status.signal().is_none(), "{signal:?}: it ends by itself");
        screen.is_given_back();
    }
}

#[test]
fn a_panic_gives_the_terminal_back_and_says_what_it_was() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[("CONTINUUM_TEST_PANIC", "1")]);
    assert!(screen.is_taken());
    screen.press("\u{1b}[24~");
    assert_ne!(screen.ended().code(), Some(0));
    screen.is_given_back();
    // On the operator's own screen, where it stays to be read.
    assert!(screen.text().contains("a panic, as the test asked for"), "{}", screen.text());
}

#[test]
fn a_line_that_was_cut_ends_the_console() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    screen.hang_up();
    screen.signal(Signal::HUP);
    screen.ended();
}

#[test]
fn stopped_it_gives_the_terminal_back_and_takes_it_again() {
    let vault = vault();
    let mut screen = Screen::live(&vault, (80, 24), &[]);
    screen.signal(Signal::TSTP);
    screen.until("the operator's own screen", |screen| !screen.is_taken());
    screen.settle();
    screen.is_given_back();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", screen.pid().as_raw_nonzero())).unwrap();
    assert!(stat.rsplit(')').next().unwrap().trim_start().starts_with('T'), "{stat}");
    screen.signal(Signal::CONT);
    screen.until("the console again", |screen| screen.is_taken() && screen.text().contains("db-01"));
    screen.press("3");
    screen.shows("Machines  6");
    screen.press("qq");
    assert_eq!(screen.ended().code(), Some(0));
    screen.is_given_back();
}
