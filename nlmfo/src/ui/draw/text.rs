//! Formats numbers, times and addresses in few cells.

use ratatui::text::Span;

/// Cells that a text takes.
fn cells(text: &str) -> usize {
    Span::raw(text).width()
}

/// Five digits at most, then thousands and millions.
pub fn count(number: u64) -> String {
    match number {
        0..100_000 => number.to_string(),
        100_000..10_000_000 => format!("{}k", number / 1_000),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// A rate: a decimal where there is room for one.
pub fn rate(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        ..9.95 => format!("{number:.1}"),
        _ => count(number.round() as u64),
    }
}

/// Seconds, with a decimal where there are few.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds.fract() == 0.0 => format!("{seconds:.0}"),
        ..9.95 => format!("{seconds:.1}"),
        _ => format!("{seconds:.0}"),
    }
}

/// A length of time in its greatest unit.
pub fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// The time of day in UTC, of milliseconds since 1970.
pub fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1000 % 86_400;
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

/// At the most `width` cells; what is too long loses its middle, where addresses differ
/// least.
pub fn without_middle(text: &str, width: usize, ascii: bool) -> String {
    cut(text, width, ascii, width.saturating_sub(1) / 2)
}

/// Text that is too long loses its beginning: the end of a path identifies it.
pub fn without_head(text: &str, width: usize, ascii: bool) -> String {
    cut(text, width, ascii, 0)
}

/// Keeps `head` cells, a mark, and as much of the end as there is room for. Characters that are not
/// printable ASCII become `?` in ASCII mode.
fn cut(text: &str, width: usize, ascii: bool, head: usize) -> String {
    let text: String = text
        .chars()
        .map(|char| match char {
            _ if char.is_control() => '?',
            _ if ascii && !char.is_ascii() => '?',
            _ => char,
        })
        .collect();
    if cells(&text) <= width {
        return text;
    }
    if width == 0 {
        return String::new();
    }
    let chars: Vec<char> = text.chars().collect();
    let mark = if ascii { '~' } else { '…' };
    let fitting = |mut room: usize, chars: &mut dyn Iterator<Item = &char>| {
        let mut count = 0;
        for char in chars {
            let width = cells(char.encode_utf8(&mut [0; 4]));
            if width > room {
                break;
            }
            room -= width;
            count += 1;
        }
        count
    };
    let head = fitting(head, &mut chars.iter());
    let mut cut: String = chars[..head].iter().collect();
    let tail = fitting(width - 1 - cells(&cut), &mut chars.iter().rev());
    cut.push(mark);
    cut.extend(&chars[chars.len() - tail..]);
    cut
}

/// A row of bars, the newest value at the right end.
pub fn sparkline(
    values: impl DoubleEndedIterator<Item = f32> + Clone,
    width: usize,
    bars: &[&str; 8],
) -> String {
    let newest: Vec<f32> = values.rev().take(width).collect();
    let most = newest.iter().copied().fold(0.0, f32::max);
    let mut line = " ".repeat(width - newest.len());
    for value in newest.into_iter().rev() {
        line.push_str(match value {
            _ if value <= 0.0 => " ",
            _ => bars[((value / most * 8.0).ceil() as usize).clamp(1, 8) - 1],
        });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::draw::theme::BARS;

    #[test]
    fn numbers_take_few_cells() {
        assert_eq!(count(99_999), "99999");
        assert_eq!(count(100_000), "100k");
        assert_eq!(count(u64::MAX).len(), "18446744073709M".len());
        assert_eq!(rate(0.0), "0");
        assert_eq!(rate(1.26), "1.3");
        assert_eq!(rate(1234.4), "1234");
        assert_eq!(seconds(1.0), "1");
        assert_eq!(seconds(2.26), "2.3");
        assert_eq!(seconds(22.6), "23");
        assert_eq!(age(119_000), "119s");
        assert_eq!(age(120_000), "2m");
        assert_eq!(age(200_000_000), "2d");
        assert_eq!(clock(1_000_000_000_123), "01:46:40 UTC");
    }

    #[test]
    fn long_texts_keep_what_tells_them_apart() {
        let vip = "2001:db8:85a3:1234:5678:8a2e:370:7334";
        assert_eq!(without_middle(vip, 15, false), "2001:db…70:7334");
        assert_eq!(without_middle(vip, 40, false), vip);
        assert_eq!(without_head("/srv/data/mail/a", 7, true), "~mail/a");
        for width in 0..20 {
            assert!(cells(&without_middle("日本語のファイル名", width, false)) <= width);
            assert!(cells(&without_head("日本語のファイル名", width, true)) <= width);
        }
        assert_eq!(without_head("a\x1b[31mb", 20, false), "a?[31mb");
        assert_eq!(without_head("é", 20, true), "?");
    }

    #[test]
    fn a_sparkline_is_as_high_as_its_highest() {
        assert_eq!(sparkline([0.0, 1.0, 8.0].into_iter(), 5, &BARS), "   ▁█");
        assert_eq!(sparkline([0.0; 9].into_iter(), 3, &BARS), "   ");
        assert_eq!(sparkline([].into_iter(), 3, &BARS), "   ");
    }
}
