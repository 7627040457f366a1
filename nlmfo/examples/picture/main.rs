//! `cargo xtask picture`: a moment of a recording of `nlmfo watch`, as the screen shows
//! it, drawn as SVG.

mod svg;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nlmfo::ticks::judge::VipState;
use nlmfo::ticks::tick::Tick;
use nlmfo::ui::draw::{Theme, draw};
use nlmfo::ui::source::recording::Reader;
use nlmfo::ui::state::{App, Message};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Cells: wide enough for percentiles and histories.
const WIDTH: u16 = 118;
const HEIGHT: u16 = 20;

const THEME: Theme = Theme {
    colour: true,
    ascii: false,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [recording, picture] => paint(Path::new(recording), Path::new(picture)),
        _ => Err(anyhow::anyhow!("usage: picture RECORDING SVG")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("picture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The last moment at which clients reclaim.
fn paint(recording: &Path, picture: &Path) -> Result<()> {
    let (mut reader, first) = Reader::open(recording)?;
    let mut app = App::default();
    let mut shown = None;
    let mut next = Some(first);
    while let Some(tick) = next {
        let reclaiming = is_reclaiming(&tick);
        app.update(Message::Tick(Box::new(tick)));
        if reclaiming {
            shown = Some(cells(&app));
        }
        next = reader.next_tick()?;
    }
    let Some(cells) = shown else {
        bail!("{}: no VIP reclaims in this recording", recording.display());
    };
    std::fs::write(picture, svg::of(&cells)).with_context(|| picture.display().to_string())
}

fn is_reclaiming(tick: &Tick) -> bool {
    let reclaiming = |state: &VipState| matches!(state, VipState::Reclaiming { .. });
    tick.vips.iter().any(|vip| reclaiming(&vip.state))
}

fn cells(app: &App) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, WIDTH, HEIGHT));
    draw(app, &THEME, &mut buffer);
    buffer
}
