//! The latency of LOCK calls, as bars.

use ratatui::text::Span;

use super::theme::Theme;
use super::{Canvas, text};
use crate::ticks::latency::{self, Buckets};

/// Cells of a bar, with the gap behind it.
const BAR: usize = 2;

/// Maximum number of bars: 24 powers of two span more than seven powers of ten.
const BARS: usize = 24;

/// Cells of the whole.
pub(super) const WIDTH: usize = BAR * BARS;

/// A title, bars of `height` lines, and their scale.
pub(super) fn draw(buckets: &Buckets, height: usize, theme: &Theme, canvas: &mut Canvas) {
    let calls: u64 = buckets.iter().sum();
    let title = format!(
        "LOCK latency, {} calls since the watch started",
        text::count(calls)
    );
    canvas.line(Span::styled(title, theme.dim()));
    let (first, bars) = part(buckets);
    let Some(most) = bars.iter().copied().max().filter(|most| *most > 0) else {
        return;
    };
    for line in (0..height).rev() {
        let cells: String = bars
            .iter()
            .map(|&calls| format!("{} ", cell(calls, most, line, height, theme)))
            .collect();
        canvas.line(Span::styled(
            cells,
            theme.coloured(ratatui::style::Color::Green),
        ));
    }
    let from = format!(
        "from {}",
        latency::short(latency::end(first) / 2, theme.ascii)
    );
    let to = format!(
        "to {}",
        latency::short(latency::end(first + bars.len() - 1), theme.ascii)
    );
    canvas.line(format!("{from}, twice as long each bar, {to}"));
}

/// The buckets from the first to the last that is not empty, and the first's number;
/// the slowest of them if they are too many.
fn part(buckets: &Buckets) -> (usize, &[u64]) {
    let some = |calls: &u64| *calls > 0;
    let Some(last) = buckets.iter().rposition(some) else {
        return (0, &[]);
    };
    let first = buckets.iter().position(some).unwrap_or(last);
    let first = first.max((last + 1).saturating_sub(BARS));
    (first, &buckets[first..=last])
}

/// The cell of a bar in a line, counted from the bottom. A bucket with any calls is visible.
fn cell(calls: u64, most: u64, line: usize, height: usize, theme: &Theme) -> &'static str {
    let bars = theme.bars();
    let eighths = (u128::from(calls) * (height as u128 * 8)).div_ceil(u128::from(most)) as usize;
    match eighths.saturating_sub(line * 8) {
        0 => " ",
        part => bars[part.min(8) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_calls_are_never_left_out() {
        let mut buckets = [0; nlmfo_common::counters::LATENCY_BUCKETS];
        assert_eq!(part(&buckets), (0, &[][..]));
        buckets[0] = 1;
        buckets[35] = 2;
        let (first, bars) = part(&buckets);
        assert_eq!((first, bars.len(), bars.last()), (12, BARS, Some(&2)));
    }

    #[test]
    fn one_call_among_many_is_seen() {
        let theme = Theme {
            colour: false,
            ascii: false,
        };
        assert_eq!(cell(1, 1_000_000, 0, 4, &theme), "▁");
        assert_eq!(cell(1, 1_000_000, 1, 4, &theme), " ");
        assert_eq!(cell(u64::MAX, u64::MAX, 3, 4, &theme), "█");
        assert_eq!(cell(0, 1, 0, 4, &theme), " ");
    }
}
