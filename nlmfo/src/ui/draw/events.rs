//! What happened, the newest first.

use ratatui::text::{Line, Span};

use super::theme::Theme;
use super::{Canvas, text};
use crate::ticks::events::Event;
use crate::ui::state::App;

/// Below this height, only the list is shown.
const ROOM_FOR_MORE: u16 = 12;

pub(super) fn draw(app: &App, theme: &Theme, line: usize, canvas: &mut Canvas) {
    let events = app.events();
    let headings = format!("{:<12}  {:<19}  {:<12}{:<80}", "EVENTS", "VIP", "WHAT", "");
    canvas.line_and_right(
        Line::styled(headings, theme.headings()),
        super::filter(app, theme),
    );
    if events.is_empty() {
        canvas.line("No events since the watch started.");
    }
    let width = canvas.width();
    if canvas.area.height >= ROOM_FOR_MORE && width > 0 {
        let mut below = Canvas {
            area: canvas.take_bottom(4),
            buffer: canvas.buffer,
        };
        let rule = theme.either("─", "-").repeat(width);
        below.line(Span::styled(rule, theme.dim()));
        if let Some(event) = events.get(line.min(events.len().saturating_sub(1))) {
            whole(event, width, theme, &mut below);
        }
    }
    canvas.list(events.len(), line, |place| one(events[place], width, theme));
}

/// The full text of an event, which may not fit its line.
fn whole(event: &Event, width: usize, theme: &Theme, canvas: &mut Canvas) {
    let vip = event.vip.map_or_else(String::new, |vip| format!("{vip}: "));
    let words = vip + &event.text;
    let all = text::without_middle(&words, usize::MAX, theme.ascii);
    let chars: Vec<char> = all.chars().collect();
    for part in chars.chunks(width) {
        canvas.line(part.iter().collect::<String>());
    }
}

fn one<'a>(event: &Event, width: usize, theme: &Theme) -> Line<'a> {
    let kind = theme.event(event.kind);
    let vip = event
        .vip
        .map_or_else(|| "-".to_owned(), |vip| vip.to_string());
    let vip = text::without_middle(&vip, 19, theme.ascii);
    let words = text::without_middle(&event.text, width.saturating_sub(47), theme.ascii);
    Line::from(vec![
        Span::raw(format!("{}  {vip:<19}  ", text::clock(event.at_ms))),
        Span::styled(format!("{:<11}", kind.text()), kind.style),
        Span::raw(format!(" {words}")),
    ])
}
