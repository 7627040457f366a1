//! Draws the state: a pure function of the state and the size.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::state::{App, Pane};
use crate::ticks::tick::{Server, Tick, VipTick};

mod events;
mod help;
mod histogram;
mod overview;
pub(crate) mod text;
pub(crate) mod theme;
mod vip;

pub use help::LINES as HELP_LINES;
pub use theme::Theme;

/// Draws the whole screen, whatever its size.
pub fn draw(app: &App, theme: &Theme, buffer: &mut Buffer) {
    buffer.reset();
    let mut canvas = Canvas {
        area: buffer.area,
        buffer,
    };
    let footer = canvas.take_bottom(1);
    header(app, theme, &mut canvas);
    match app.pane() {
        Pane::Overview => overview::draw(app, theme, &mut canvas),
        Pane::Vip { vip, line } => vip::draw(app, theme, vip, line, &mut canvas),
        Pane::Events { line } => events::draw(app, theme, line, &mut canvas),
        Pane::Help { line } => help::draw(theme, line, &mut canvas),
    }
    canvas.put(footer, help::footer(app, theme));
}

/// A part of the screen that lines are taken from.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    /// The remaining area.
    area: Rect,
}

impl Canvas<'_> {
    fn width(&self) -> usize {
        self.area.width.into()
    }

    /// Takes lines from the top; fewer if fewer are left.
    fn take_top(&mut self, height: u16) -> Rect {
        let height = height.min(self.area.height);
        let taken = Rect {
            height,
            ..self.area
        };
        self.area.y += height;
        self.area.height -= height;
        taken
    }

    /// Takes lines from the bottom.
    fn take_bottom(&mut self, height: u16) -> Rect {
        let height = height.min(self.area.height);
        self.area.height -= height;
        Rect {
            y: self.area.y + self.area.height,
            height,
            ..self.area
        }
    }

    /// Writes a line at the top of a part.
    fn put<'l>(&mut self, area: Rect, line: impl Into<Line<'l>>) {
        if area.height > 0 && area.width > 0 {
            self.buffer
                .set_line(area.x, area.y, &line.into(), area.width);
        }
    }

    /// The next line.
    fn line<'l>(&mut self, line: impl Into<Line<'l>>) {
        let area = self.take_top(1);
        self.put(area, line);
    }

    /// The next line, with a text at its right end that goes before what is at its left.
    fn line_and_right<'l>(&mut self, line: impl Into<Line<'l>>, right: Line<'l>) {
        let mut area = self.take_top(1);
        self.put(area, line);
        let width = (right.width() as u16).min(area.width);
        area.x += area.width - width;
        area.width = width;
        self.put(area, right);
    }

    /// What is left of the screen, filled with `count` lines of which `selected` is seen
    /// and reversed.
    fn list<'l>(&mut self, count: usize, selected: usize, line: impl Fn(usize) -> Line<'l>) {
        let height = usize::from(self.area.height);
        let selected = selected.min(count.saturating_sub(1));
        let top = first_seen(count, selected, height);
        for place in top..count.min(top + height) {
            let area = self.take_top(1);
            self.put(area, line(place));
            if place == selected {
                self.buffer
                    .set_style(area, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
    }
}

/// The first line to show, so that the selected one is in the middle if it can be.
fn first_seen(count: usize, selected: usize, height: usize) -> usize {
    let last_top = count.saturating_sub(height);
    selected.saturating_sub(height / 2).min(last_top)
}

/// The header of the whole node: two lines, and more if something is wrong.
fn header(app: &App, theme: &Theme, canvas: &mut Canvas) {
    let Some(tick) = &app.world().tick else {
        canvas.line("nlmfo watch: taking the first snapshot");
        return;
    };
    let sum = |of: fn(&VipTick) -> u64| tick.vips.iter().map(of).sum::<u64>();
    let title = vec![
        Span::styled("nlmfo watch", theme.bold()),
        Span::raw(format!(
            "  {}  {}",
            text::without_middle(&tick.node, 24, theme.ascii),
            text::clock(tick.at_ms)
        )),
        Span::raw(format!(
            "  VIPs: {}  held: {}  waiting: {}",
            tick.vips.len(),
            text::count(sum(|vip| vip.held)),
            text::count(sum(VipTick::waiting))
        )),
    ];
    canvas.line_and_right(title, flags(app, theme));
    canvas.line(Span::styled(second_line(tick), theme.dim()));
    let server = match tick.server {
        Server::Serving => None,
        Server::Stopped => Some("nfsd has stopped; waiting for it"),
        Server::NotLoaded => Some("lockd was unloaded; waiting for it"),
    };
    let troubles = tick.troubles.iter().map(String::as_str);
    for trouble in server.into_iter().chain(troubles).take(2) {
        let symbol = theme.either("✗", "!");
        let trouble = text::without_middle(trouble, canvas.width(), theme.ascii);
        canvas.line(Span::styled(format!("{symbol} {trouble}"), theme.alarm()));
    }
}

fn second_line(tick: &Tick) -> String {
    let grace = match (tick.kernel_grace.lockd, tick.kernel_grace.nfsd) {
        (Some(true), Some(true)) => "lockd+nfsd",
        (Some(true), _) => "lockd",
        (_, Some(true)) => "nfsd",
        (None, None) => "unknown",
        _ => "none",
    };
    let pace = &tick.pace;
    let seconds = |ms: u64| text::seconds(ms as f64 / 1000.0);
    let mut line = format!("kernel grace: {grace}, every {} s", seconds(pace.tick_ms));
    if pace.look_ms > pace.tick_ms {
        line = format!(
            "{line}, locks every {} s ({} s old)",
            seconds(pace.look_ms),
            tick.elapsed_ms.saturating_sub(tick.look.at_ms) / 1000,
        );
    }
    if pace.is_stretched() {
        line.push_str(", stretched");
    }
    line = format!("{line}, {:.1} % CPU", pace.cpu_percent);
    if !tick.look.exact {
        line.push_str(", locks changed while read");
    }
    line
}

/// The filter, at the right end of a pane's first line.
fn filter<'a>(app: &App, theme: &Theme) -> Line<'a> {
    if app.filter().is_empty() && !app.is_typing() {
        return Line::default();
    }
    let filter = text::without_head(app.filter(), 40, theme.ascii);
    Line::styled(format!(" /{filter} "), theme.bold().reversed())
}

/// Marks of a frozen screen or a replay.
fn flags<'a>(app: &App, theme: &Theme) -> Line<'a> {
    let mut flags = Vec::new();
    if app.is_frozen() {
        flags.push(" FROZEN ".to_owned());
    }
    if let Some(playback) = app.playback {
        flags.push(match (playback.ended, playback.paused) {
            (true, _) => " REPLAY: END ".to_owned(),
            (_, true) => " REPLAY: PAUSED ".to_owned(),
            _ => format!(" REPLAY {}x ", playback.speed),
        });
    }
    Line::from(Span::styled(flags.concat(), theme.bold().reversed()))
}

#[cfg(test)]
mod tests {
    use super::first_seen;

    #[test]
    fn the_selected_line_is_always_seen() {
        for count in 1..30 {
            for height in 1..10 {
                for selected in 0..count {
                    let top = first_seen(count, selected, height);
                    assert!((top..top + height).contains(&selected));
                    assert!(top == 0 || top + height <= count);
                }
            }
        }
    }
}
