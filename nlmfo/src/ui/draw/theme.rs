//! Colours and symbols. Colour never carries meaning alone: nothing is lost with `NO_COLOR` or
//! `--ascii`.

use ratatui::style::{Color, Modifier, Style};

use super::text;
use crate::ticks::events::EventKind;
use crate::ticks::judge::VipState;

/// What the terminal can show and the operator allows.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// Colours may be used.
    pub colour: bool,
    /// Only ASCII characters may be used.
    pub ascii: bool,
}

/// Heights of a bar in a cell, the lowest first.
pub const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
pub const ASCII_BARS: [&str; 8] = [".", ".", ":", "-", "=", "+", "*", "#"];

/// How a state is shown.
pub struct Shown {
    pub symbol: &'static str,
    pub word: String,
    pub style: Style,
}

impl Shown {
    pub fn text(&self) -> String {
        format!("{} {}", self.symbol, self.word)
    }
}

impl Theme {
    pub(crate) fn either(&self, symbol: &'static str, ascii: &'static str) -> &'static str {
        if self.ascii { ascii } else { symbol }
    }

    pub(crate) fn bars(&self) -> &'static [&'static str; 8] {
        if self.ascii { &ASCII_BARS } else { &BARS }
    }

    pub(crate) fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn headings(&self) -> Style {
        Style::new().add_modifier(Modifier::UNDERLINED)
    }

    pub(crate) fn alarm(&self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(crate) fn coloured(&self, colour: Color) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    pub(crate) fn state(&self, state: &VipState) -> Shown {
        let shown = |symbol, ascii, word: String, style| Shown {
            symbol: self.either(symbol, ascii),
            word,
            style,
        };
        let seconds = |ms: u64| ms.div_ceil(1000);
        let yellow = self.coloured(Color::Yellow);
        let cyan = self.coloured(Color::Cyan);
        match *state {
            VipState::Serving => {
                let green = self.coloured(Color::Green);
                shown("●", "*", "serving".to_owned(), green)
            }
            VipState::Fenced => shown("⊘", "#", "fenced".to_owned(), yellow),
            VipState::Releasing => shown("▼", "v", "releasing".to_owned(), yellow),
            VipState::Released => shown("○", "o", "released".to_owned(), cyan),
            VipState::Grace { left_ms } => {
                let word = format!("grace {} s", seconds(left_ms));
                shown("◷", "~", word, cyan)
            }
            VipState::Reclaiming {
                reclaimed,
                expected,
                ..
            } => {
                let of = expected.map(|expected| format!("/{}", text::count(expected)));
                let word = format!(
                    "reclaiming {}{}",
                    text::count(reclaimed),
                    of.unwrap_or_default()
                );
                shown("↻", "+", word, cyan)
            }
            VipState::KernelGrace => {
                let magenta = self.coloured(Color::Magenta);
                shown("◷", "~", "kernel's grace".to_owned(), magenta)
            }
            VipState::Violation { locks } => {
                let word = format!("violation {}", text::count(locks));
                shown("✗", "!", word, self.alarm())
            }
            VipState::Doubtful { calls } => {
                let word = format!("doubtful {}", text::count(calls));
                shown("?", "?", word, self.alarm())
            }
        }
    }

    /// An event's symbol, word and colour.
    pub fn event(&self, kind: EventKind) -> Shown {
        let (symbol, ascii, word, style) = match kind {
            EventKind::Refused => ("⊘", "#", "refused", self.coloured(Color::Yellow)),
            EventKind::Released => ("▼", "v", "released", self.coloured(Color::Yellow)),
            EventKind::Reclaimed => ("↻", "+", "reclaimed", self.coloured(Color::Cyan)),
            EventKind::Recalled => ("▽", "v", "recalled", self.coloured(Color::Yellow)),
            EventKind::Ended => ("○", "o", "ended", self.bold()),
            EventKind::Grace => ("◷", "~", "grace", self.coloured(Color::Cyan)),
            EventKind::Fence => ("⊘", "#", "fence", self.coloured(Color::Yellow)),
            EventKind::KernelGrace => ("◷", "~", "kernel", self.coloured(Color::Magenta)),
            EventKind::Violation => ("✗", "!", "violation", self.alarm()),
            EventKind::Notify => ("»", ">", "notify", self.coloured(Color::Green)),
            EventKind::Server => ("●", "*", "server", self.bold()),
            EventKind::More => ("…", ".", "more", self.dim()),
        };
        Shown {
            symbol: self.either(symbol, ascii),
            word: word.to_owned(),
            style,
        }
    }
}
