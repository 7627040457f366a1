//! Cells of a terminal as SVG: a text for each run of cells of one style, as wide as its
//! cells whatever the font.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// A cell, in pixels.
pub const CELL: (f64, f64) = (8.4, 18.0);
/// From a line's top to its letters' base.
const BASE: f64 = 13.5;
pub const MARGIN: f64 = 12.0;

/// How far a line reaches over the edge that it is drawn along, in pixels.
const EDGE: f64 = 1.0;

pub const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d8dce3";

/// Cells that are shown for some time.
pub struct Frame {
    pub cells: Buffer,
    pub seconds: f64,
}

/// SVG below the cells of all frames, that is shown from left to right as time goes on.
pub struct Bars {
    pub svg: String,
    /// Where it is, in pixels.
    pub across: Range<f64>,
    pub down: Range<f64>,
}

pub fn of(buffer: &Buffer) -> String {
    let mut svg = begun(buffer);
    for y in 0..buffer.area.height {
        svg.push_str(&row(buffer, y));
    }
    svg + "</svg>\n"
}

/// Frames of one size, shown again and again; the last one is shown for so many seconds after
/// the bars are complete. Without animation, this last moment is what is seen.
///
/// Most rows are the same in most frames: what a row shows is there once, with the times at which
/// it is seen.
pub fn moving(frames: &[Frame], bars: &Bars, pause: f64) -> Option<String> {
    let last = frames.len().checked_sub(1)?;
    let mut svg = begun(&frames[0].cells);
    let total: f64 = frames.iter().map(|frame| frame.seconds).sum();
    let width = bars.across.end - bars.across.start + 2.0 * EDGE;
    let mut rules = format!(
        "g{{animation:{total:.2}s step-end infinite}}\n\
         #now{{visibility:visible;animation:now {total:.2}s linear infinite}}\n\
         @keyframes now{{{:.2}%,100%{{transform:translateX({:.1}px)}}}}\n",
        (total - pause) / total * 100.0,
        width,
    );
    let mut rows = String::new();
    for y in 0..frames[0].cells.area.height {
        let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (number, frame) in frames.iter().enumerate() {
            seen.entry(row(&frame.cells, y)).or_default().push(number);
        }
        for (number, (text, when)) in seen.into_iter().enumerate() {
            if text.is_empty() {
                continue;
            }
            if when.len() == frames.len() {
                rows.push_str(&text);
                continue;
            }
            let name = format!("r{y}-{number}");
            let times = times(frames, &when, total);
            let _ = writeln!(
                rules,
                "@keyframes {name}{{{times}}}\n#{name}{{animation-name:{name}}}"
            );
            let shown = visibility(when.contains(&last));
            let _ = writeln!(rows, "<g id=\"{name}\" visibility=\"{shown}\">\n{text}</g>");
        }
    }
    let _ = write!(
        svg,
        "<style>\n@media (prefers-reduced-motion: no-preference) {{\n{rules}}}\n</style>\n{}\
         <rect id=\"now\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
         visibility=\"hidden\" fill=\"{BACKGROUND}\"/>\n{rows}</svg>\n",
        bars.svg,
        bars.across.start - EDGE,
        bars.down.start,
        bars.down.end - bars.down.start,
    );
    Some(svg)
}

/// The steps of an animation that shows something in these frames.
fn times(frames: &[Frame], when: &[usize], total: f64) -> String {
    let mut steps = String::new();
    let (mut at, mut was) = (0.0, None);
    for (number, frame) in frames.iter().enumerate() {
        let is = when.contains(&number);
        if was != Some(is) {
            let percent = at / total * 100.0;
            let _ = write!(steps, "{percent:.2}%{{visibility:{}}}", visibility(is));
            was = Some(is);
        }
        at += frame.seconds;
    }
    steps
}

fn visibility(is_visible: bool) -> &'static str {
    match is_visible {
        true => "visible",
        false => "hidden",
    }
}

fn begun(buffer: &Buffer) -> String {
    let (columns, lines) = (buffer.area.width, buffer.area.height);
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(lines) * CELL.1 + 2.0 * MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    )
}

fn row(buffer: &Buffer, y: u16) -> String {
    let row: Vec<&Cell> = (0..buffer.area.width).map(|x| &buffer[(x, y)]).collect();
    let mut svg = String::new();
    let mut x = 0;
    for run in row.chunk_by(|a, b| style(a) == style(b)) {
        paint(&mut svg, run, x, y.into());
        x += run.len();
    }
    svg
}

fn style(cell: &Cell) -> (Color, Modifier) {
    (cell.fg, cell.modifier)
}

fn paint(svg: &mut String, run: &[&Cell], x: usize, y: usize) {
    let (colour, modifier) = style(run[0]);
    let (mut front, mut back) = (hex(colour), None);
    let (left, top) = (x as f64 * CELL.0 + MARGIN, y as f64 * CELL.1 + MARGIN);
    let width = run.len() as f64 * CELL.0;
    if modifier.contains(Modifier::REVERSED) {
        back = Some(front);
        front = BACKGROUND;
    }
    if let Some(back) = back {
        let height = CELL.1;
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height}\" \
             fill=\"{back}\"/>"
        );
    }
    let text: String = run.iter().map(|cell| cell.symbol()).collect();
    if text.trim().is_empty() {
        return;
    }
    let mut more = String::new();
    if modifier.contains(Modifier::BOLD) {
        more.push_str(" font-weight=\"bold\"");
    }
    if modifier.contains(Modifier::DIM) {
        more.push_str(" opacity=\"0.6\"");
    }
    if modifier.contains(Modifier::UNDERLINED) {
        more.push_str(" text-decoration=\"underline\"");
    }
    let base = top + BASE;
    let text = escaped(&text);
    let _ = writeln!(
        svg,
        "<text x=\"{left:.1}\" y=\"{base:.1}\" textLength=\"{width:.1}\" fill=\"{front}\"{more} \
         xml:space=\"preserve\">{text}</text>"
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The colours that the screen uses.
pub fn hex(colour: Color) -> &'static str {
    match colour {
        Color::Red => "#ff6b6b",
        Color::Green => "#7fd88f",
        Color::Yellow => "#f2cc60",
        Color::Cyan => "#6cc7e0",
        Color::Magenta => "#d2a8ff",
        _ => FOREGROUND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Frame {
        Frame {
            cells: Buffer::with_lines([text, "always <here>"]),
            seconds: 1.0,
        }
    }

    #[test]
    fn what_a_row_shows_is_drawn_once_with_the_times_at_which_it_is_seen() {
        let frames = ["before", "during", "before", "after"].map(frame);
        let bars = Bars {
            svg: String::new(),
            across: 0.0..100.0,
            down: 0.0..36.0,
        };
        let svg = moving(&frames, &bars, 1.0).unwrap();
        assert_eq!(svg.matches(">before").count(), 1, "{svg}");
        assert_eq!(
            svg.matches(">always &lt;here&gt;</text>").count(),
            1,
            "{svg}"
        );
        let steps = "{0.00%{visibility:hidden}25.00%{visibility:visible}50.00%{visibility:hidden}}";
        assert!(svg.contains(steps), "{svg}");
        let still = svg.matches("visibility=\"visible\"").count();
        assert_eq!(still, 1, "only how it ended: {svg}");
    }
}
