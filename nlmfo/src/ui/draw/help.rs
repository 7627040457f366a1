//! The help pane: keys, columns and states.

use ratatui::text::{Line, Span};

use super::theme::Theme;
use super::{Canvas, text};
use crate::ui::state::{App, Pane};

const HELP: [&str; LINES] = [
    "KEYS",
    "  up, down, j, k    move; page up and down, home and end too",
    "  Enter             open the selected VIP, or the VIP of an event",
    "  Esc               back; in the overview it clears the filter",
    "  /                 filter by part of a VIP, client address or name, or file",
    "  s                 sort the overview by another column",
    "  f                 freeze or unfreeze the screen",
    "  e                 events",
    "  q                 quit",
    "  in a replay       space pauses, + - change the speed, . steps, r restarts",
    "COLUMNS",
    "  HELD WAIT SHARES CLI  NFSv3: locks held, waiters (NFSv4's too), DOS shares,",
    "                        and clients, in the last snapshot of lockd's lists",
    "  NFSV4                 opens, locks, delegations and layouts of NFSv4 clients",
    "  GRANT/s REL/s DENY/s  locks granted (with reclaims), unlocked or released by",
    "                        lockd, and refused, per second",
    "  p50 p99               latency of recent LOCK calls, 50th and 99th percentile,",
    "                        rounded up to a power of two",
    "  AGE                   how long this watch has seen the lock; with a mark",
    "                        if the lock is older than the watch",
    "  WAIT (of a lock)      waiters that cannot be granted while it is held",
    "STATES",
    "  serving           locks are granted and kept",
    "  fenced            packets to lockd are dropped, the locks are still held",
    "  releasing         lockd is dropping the VIP's locks",
    "  released          no lock is left, and none was granted since",
    "  grace 43 s        new locks are refused, no lock is reclaimed yet",
    "  reclaiming 8/10   locks reclaimed, of those held before",
    "  kernel's grace    the kernel itself is in grace, for all addresses",
    "  violation 1       in grace, a lock that was not a reclaim was granted",
    "  doubtful 1        reclaims were refused, or lockd answered unseen calls",
    "This screen only reads; it changes no lock.",
];

/// Lines of the help.
pub const LINES: usize = 32;

pub(super) fn draw(theme: &Theme, line: usize, canvas: &mut Canvas) {
    canvas.list(LINES, line, |place| match HELP[place] {
        title if !title.starts_with(' ') => Line::styled(title, theme.bold()),
        text => Line::raw(text),
    });
}

/// The keys of the current pane.
pub(super) fn footer<'a>(app: &App, theme: &Theme) -> Line<'a> {
    let move_keys = theme.either("↑↓", "jk");
    let mut keys: Vec<(&str, &str)> = Vec::new();
    if app.is_typing() {
        keys.extend([("Enter", "keep"), ("Esc", "undo")]);
        let filter = text::without_head(app.filter(), 40, theme.ascii);
        let filter = format!("/{filter}{} ", theme.either("▏", "_"));
        let mut line = spans(&keys, theme);
        line.insert(0, Span::raw(filter));
        return Line::from(line);
    }
    if app.playback.is_some() {
        keys.extend([("space", "pause"), ("+-", "speed")]);
    }
    keys.push((move_keys, "move"));
    match app.pane() {
        Pane::Overview => {
            keys.extend([
                ("Enter", "open"),
                ("/", "filter"),
                ("s", "sort"),
                ("f", "freeze"),
            ]);
            keys.push(("e", "events"));
        }
        Pane::Vip { .. } => {
            keys.extend([
                ("Esc", "back"),
                ("/", "filter"),
                ("f", "freeze"),
                ("e", "events"),
            ]);
        }
        Pane::Events { .. } => {
            keys.extend([("Enter", "its VIP"), ("Esc", "back"), ("/", "filter")]);
            keys.push(("f", "freeze"));
        }
        Pane::Help { .. } => keys.push(("Esc", "back")),
    }
    keys.extend([("?", "help"), ("q", "quit")]);
    Line::from(spans(&keys, theme))
}

fn spans<'a>(keys: &[(&'static str, &'static str)], theme: &Theme) -> Vec<Span<'a>> {
    let pairs = keys.iter();
    pairs
        .flat_map(|&(key, word)| {
            [
                Span::styled(key, theme.bold()),
                Span::raw(format!(" {word}  ")),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_line_is_cut_on_80_cells() {
        for line in super::HELP {
            assert!(line.len() <= 80, "{line}");
        }
    }
}
