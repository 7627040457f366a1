//! What each client sees of a move: a bar for each VIP that it uses, along the seconds of the
//! recording.

use std::fmt::Write;
use std::ops::Range;

use ratatui::style::Color;

use super::moved::{Client, Line, NODES, Seen};
use super::svg::{BACKGROUND, CELL, MARGIN, hex};

/// A client that waits longer for an answer stands still, in milliseconds. They ask ten times a
/// second, and the recording looks at them four times a second.
const WAITS: u64 = 1_000;

/// Pixels: the width of a letter in a bar, from a line's top to the base of its letters, and what
/// is free above and below a bar.
const LETTER: f64 = 7.2;
const BASE: f64 = 13.0;
const FREE: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// By this one of the nodes.
    Answered(usize),
    StoodStill,
}

/// What a client saw in this time, from the times of its answers. From `moved` on, the second node
/// answers.
fn parts(answers: &[u64], shown: &Range<u64>, moved: u64) -> Vec<(Range<u64>, Part)> {
    let answered = |from| Part::Answered(usize::from(from >= moved));
    let mut parts = Vec::new();
    let (mut from, mut last) = (shown.start, shown.start);
    for &next in answers.iter().chain([&shown.end]) {
        if next > last + WAITS {
            parts.push((from..last, answered(from)));
            parts.push((last..next, Part::StoodStill));
            from = next;
        }
        last = next;
    }
    parts.push((from..shown.end, answered(from)));
    parts.retain(|(time, _)| !time.is_empty());
    parts
}

/// When the server was first gone from its node, after the command.
pub fn moved(lines: &[Line], command: u64) -> Option<u64> {
    let is_gone = |line: &&Line| match &line.seen {
        Seen::Watch { node, tick } => line.at_ms > command && node == NODES[0].0 && tick.is_none(),
        _ => false,
    };
    lines.iter().find(is_gone).map(|line| line.at_ms)
}

/// The times at which a client was answered.
fn answers(
    lines: &[Line],
    shown: &Range<u64>,
    client: usize,
    silent: fn(&Client) -> u64,
) -> Vec<u64> {
    let seen = lines.iter().filter_map(|line| match &line.seen {
        Seen::Clients(clients) => line.at_ms.checked_sub(silent(clients.get(client)?)),
        _ => None,
    });
    seen.filter(|at| shown.contains(at)).collect()
}

/// The bars, in pixels.
pub struct Lanes<'a> {
    pub lines: &'a [Line],
    /// What is shown of the recording.
    pub shown: Range<u64>,
    /// Where that is shown.
    pub across: Range<f64>,
}

impl Lanes<'_> {
    /// The bar of a client on this line.
    pub fn bar(&self, y: u16, client: usize, silent: fn(&Client) -> u64, moved: u64) -> String {
        let top = f64::from(y) * CELL.1 + MARGIN;
        let answers = answers(self.lines, &self.shown, client, silent);
        let mut svg = String::new();
        for (time, part) in parts(&answers, &self.shown, moved) {
            let (left, width) = (self.x(time.start), self.x(time.end) - self.x(time.start));
            let (front, back, edge, labels) = match part {
                Part::Answered(node) => {
                    let (name, colour) = NODES[node];
                    let labels = [format!("answered by {name}"), name.to_owned()];
                    (BACKGROUND, hex(colour), hex(colour), labels)
                }
                Part::StoodStill => {
                    let yellow = hex(Color::Yellow);
                    let seconds = format!("{:.1} s", (time.end - time.start) as f64 / 1000.0);
                    let labels = [format!("stood still for {seconds}"), seconds];
                    (yellow, BACKGROUND, yellow, labels)
                }
            };
            let (y, height) = (top + FREE, CELL.1 - 2.0 * FREE);
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                 fill=\"{back}\" stroke=\"{edge}\"/>"
            );
            let fits = |label: &&String| label.len() as f64 * LETTER < width;
            if let Some(label) = labels.iter().find(fits) {
                svg.push_str(&text(left + width / 2.0, top, front, label));
            }
        }
        svg
    }

    /// Seconds since the command began, on this line.
    pub fn axis(&self, y: u16, command: u64) -> String {
        let top = f64::from(y) * CELL.1 + MARGIN;
        let marks = (command..self.shown.end).step_by(5_000).map(|at| {
            let seconds = format!("{} s", (at - command) / 1000);
            text(self.x(at), top, "#9aa0aa", &seconds)
        });
        marks.collect()
    }

    fn x(&self, at: u64) -> f64 {
        let width = self.across.end - self.across.start;
        let part = (at - self.shown.start) as f64 / (self.shown.end - self.shown.start) as f64;
        self.across.start + part * width
    }
}

fn text(middle: f64, top: f64, colour: &str, text: &str) -> String {
    let base = top + BASE;
    format!(
        "<text x=\"{middle:.1}\" y=\"{base:.1}\" font-size=\"12\" text-anchor=\"middle\" \
         fill=\"{colour}\">{text}</text>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_gap_between_answers_is_a_stall_and_then_the_second_node_answers() {
        let seen = parts(&[1_000, 1_900, 8_900, 9_000], &(500..10_000), 5_000);
        let expected = [
            (500..1_900, Part::Answered(0)),
            (1_900..8_900, Part::StoodStill),
            (8_900..10_000, Part::Answered(1)),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_client_that_is_answered_all_the_time_has_one_part() {
        let seen = parts(&[1_000, 2_000, 3_000], &(0..4_000), u64::MAX);
        assert_eq!(seen, [(0..4_000, Part::Answered(0))]);
    }

    #[test]
    fn a_client_that_is_never_answered_again_stands_still_to_the_end() {
        let seen = parts(&[1_000], &(0..9_000), 5_000);
        let expected = [
            (0..1_000, Part::Answered(0)),
            (1_000..9_000, Part::StoodStill),
        ];
        assert_eq!(seen, expected);
    }
}
