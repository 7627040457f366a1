//! Cells of a terminal as SVG: a text for each run of cells of one style, as wide as its
//! cells whatever the font.

use std::fmt::Write;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// A cell, in pixels.
const CELL: (f64, f64) = (8.4, 18.0);
/// From a line's top to its letters' base.
const BASE: f64 = 13.5;
const MARGIN: f64 = 12.0;

const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d8dce3";

pub fn of(buffer: &Buffer) -> String {
    let (columns, lines) = (buffer.area.width, buffer.area.height);
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(lines) * CELL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in 0..lines {
        let row: Vec<&Cell> = (0..columns).map(|x| &buffer[(x, y)]).collect();
        let mut x = 0;
        for run in row.chunk_by(|a, b| style(a) == style(b)) {
            paint(&mut svg, run, x, y.into());
            x += run.len();
        }
    }
    svg + "</svg>\n"
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
fn hex(colour: Color) -> &'static str {
    match colour {
        Color::Red => "#ff6b6b",
        Color::Green => "#7fd88f",
        Color::Yellow => "#f2cc60",
        Color::Cyan => "#6cc7e0",
        Color::Magenta => "#d2a8ff",
        _ => FOREGROUND,
    }
}
