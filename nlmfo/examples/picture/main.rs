//! `cargo xtask picture`: a moment of a recording of `nlmfo watch`, as the screen shows
//! it, drawn as SVG; and a move between two nodes, as a picture that moves.

mod lanes;
mod moved;
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
        [name, recording, picture] => paint(name, Path::new(recording), Path::new(picture)),
        _ => Err(anyhow::anyhow!("usage: picture watch|move RECORDING SVG")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("picture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn paint(name: &str, recording: &Path, picture: &Path) -> Result<()> {
    std::fs::write(picture, drawn(name, recording)?).with_context(|| picture.display().to_string())
}

/// The picture of this name.
fn drawn(name: &str, recording: &Path) -> Result<String> {
    match name {
        "watch" => Ok(svg::of(&moment(recording)?)),
        "move" => moved::picture(recording),
        _ => bail!("there is no picture {name:?}"),
    }
}

/// The last moment at which clients reclaim.
fn moment(recording: &Path) -> Result<Buffer> {
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
    match shown {
        Some(cells) => Ok(cells),
        None => bail!("{}: no VIP reclaims in this recording", recording.display()),
    }
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

#[test]
fn the_pictures_are_those_of_their_recordings_and_fit_a_readme() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for name in ["watch", "move"] {
        let now = drawn(name, &docs.join(format!("{name}.jsonl"))).unwrap();
        let file = docs.join(format!("{name}.svg"));
        let then = std::fs::read_to_string(&file).unwrap();
        assert!(now == then, "run cargo xtask picture: {}", file.display());
        assert!(!now.contains("<script") && now.len() < 200 << 10);
    }
}
