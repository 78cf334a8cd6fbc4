//! Who gets how many lines and columns. The drawing and the paging use the same numbers.

use super::state::{Connection, Place, State, Tab};

/// Narrower than this, or lower, and only a message fits.
pub const LEAST: (u16, u16) = (60, 15);
/// From this width on there is a detail pane beside tables.
pub const WIDE: u16 = 140;

/// Whether a screen of this size can be drawn.
pub const fn is_large_enough((columns, rows): (u16, u16)) -> bool {
    columns >= LEAST.0 && rows >= LEAST.1
}

/// Lines of the banner about a lost connection.
pub const fn banner(state: &State) -> u16 {
    match state.connection {
        Connection::Lost { .. } if state.heard.is_some() => 2,
        _ => 0,
    }
}

/// Lines between the two at the top and the one at the bottom, without the banner.
pub const fn content_rows(state: &State) -> u16 {
    state.size.1.saturating_sub(3 + banner(state))
}

/// Lines of the panel under the table of a place: what needs me on Pulse, the whole alert on Alerts.
pub fn under_table(state: &State) -> u16 {
    let rows = content_rows(state);
    match state.place {
        Place::Pulse => (rows / 4).clamp(4, 10),
        Place::Alerts if detail_columns(state) == 0 => (rows / 3).clamp(6, 10),
        // What a plan does is what the screen is for.
        Place::Plans | Place::Policies if detail_columns(state) == 0 => (rows * 2 / 3).clamp(6, 24),
        _ => 0,
    }
}

/// Lines over the table of a place.
pub const fn over_table(state: &State) -> u16 {
    match state.place {
        Place::Pulse => 5,
        Place::Machine(..) => 1,
        _ => 1,
    }
}

/// Columns of the detail pane; 0 where there is none.
pub const fn detail_columns(state: &State) -> u16 {
    match state.place {
        Place::Machines
        | Place::Jobs
        | Place::Alerts
        | Place::Servers
        | Place::Sites
        | Place::Plans
        | Place::Policies
            if state.size.0 >= WIDE =>
        {
            if state.size.0 >= 180 {
                64
            } else {
                52
            }
        }
        _ => 0,
    }
}

/// How many rows of the table of this place fit.
pub fn table_rows(state: &State) -> usize {
    let taken = over_table(state) + 1 + under_table(state);
    usize::from(content_rows(state).saturating_sub(taken)).max(1)
}

/// Columns of the histogram on the timeline.
pub const fn timeline_columns(state: &State) -> u16 {
    state.size.0.saturating_sub(2)
}

/// A page, in lines, of what this place shows.
pub fn page(state: &State) -> usize {
    match &state.place {
        Place::Machine(_, Tab::Overview | Tab::Disks) | Place::Job(_) => {
            usize::from(content_rows(state).saturating_sub(3)).max(1)
        }
        _ => table_rows(state),
    }
}
