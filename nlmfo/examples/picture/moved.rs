//! A move between two nodes, as a picture that moves: what the operator types and reads, `nlmfo
//! watch` on each node, and what each client sees.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nlmfo::ticks::tick::Tick;
use nlmfo::ui::draw::draw;
use nlmfo::ui::state::{App, Message};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

use super::THEME;
use super::lanes::{Lanes, moved};
use super::svg::{Bars, CELL, Frame, MARGIN, moving};

/// Cells.
const WIDTH: u16 = 98;

/// Cells of `nlmfo watch`: too narrow for latencies, which say more of the machine.
const WATCH: u16 = 80;

/// Lines of `nlmfo watch`: its heading, and a VIP.
const TABLE: u16 = 2;

/// Lines of what the operator types and reads.
const SAID: u16 = 7;

/// Where the clients of each VIP begin, and their lines: a title, four, and an empty one. Then the
/// axis and the thief.
const LANES: u16 = SAID + 2 * (TABLE + 2);
const CLIENTS: u16 = 6;
const AXIS: u16 = LANES + 2 * CLIENTS - 1;
const HEIGHT: u16 = AXIS + 2;

/// Cells of a client's name.
const NAME: u16 = 12;

/// The VIPs: which moves, and since when a client has no answer through it.
type Silent = fn(&Client) -> u64;
const VIPS: [(&str, bool, Silent); 2] = [
    ("10.77.0.1, which moves", true, |client| client.silent_ms),
    ("10.77.0.2, which stays", false, |client| {
        client.elsewhere_silent_ms
    }),
];

/// Between two frames, in milliseconds of the recording.
const STEP: usize = 500;

/// How many times as fast as it was.
const SPEED: f64 = 2.0;

/// Seconds to read how it ended.
const PAUSE: f64 = 6.0;

/// What is shown of the recording before the command and after its end, in milliseconds.
const BEFORE: u64 = 3_000;
const AFTER: u64 = 3_000;

/// The nodes, and the colours that stand for them.
pub const NODES: [(&str, Color); 2] = [("a", Color::Cyan), ("b", Color::Magenta)];

/// A line of the recording, as `tests/src/demo/recording.rs` writes it.
#[derive(Deserialize)]
pub struct Line {
    pub at_ms: u64,
    #[serde(flatten)]
    pub seen: Seen,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    Watch {
        node: String,
        /// None while the server is not there.
        tick: Option<Box<Tick>>,
    },
    Clients(Vec<Client>),
    /// The command, then what it prints.
    Said(String),
}

/// A client at one moment.
#[derive(Deserialize)]
pub struct Client {
    pub name: String,
    /// Its version.
    pub nfs: String,
    /// Since its last answer through the VIP that moves.
    pub silent_ms: u64,
    /// Since its last answer through the VIP that stays.
    pub elsewhere_silent_ms: u64,
    /// How often another client asked for its lock, and got it.
    pub refused: u64,
    pub stolen: u64,
}

/// Everything at one moment.
#[derive(Default)]
struct Scene {
    nodes: BTreeMap<String, App>,
    clients: Vec<Client>,
    said: Vec<String>,
}

impl Scene {
    fn take(&mut self, line: Line) {
        match line.seen {
            Seen::Watch { node, tick: None } => drop(self.nodes.remove(&node)),
            Seen::Watch {
                node,
                tick: Some(tick),
            } => {
                let app = self.nodes.entry(node).or_default();
                app.update(Message::Tick(tick));
            }
            Seen::Said(said) => self.said.push(said),
            Seen::Clients(clients) => self.clients = clients,
        }
    }

    fn cells(&self) -> Buffer {
        let mut buffer = Buffer::empty(Rect::new(0, 0, WIDTH, HEIGHT));
        for (y, (line, style)) in (0..).zip(terminal(&self.said)) {
            buffer.set_string(0, y, line, style);
        }
        let mut y = SAID;
        for (node, colour) in NODES {
            let title = title(&format!("node {node}: nlmfo watch --server mail"));
            buffer.set_string(0, y, title, Style::new().fg(colour));
            match self.nodes.get(node) {
                Some(app) => table(app, &mut buffer, y + 1),
                None => buffer.set_string(0, y + 1, "server mail is not on this node", dim()),
            }
            y += TABLE + 2;
        }
        for (vip, ..) in VIPS {
            buffer.set_string(0, y, title(&format!("clients of {vip}")), Style::new());
            for (y, client) in (y + 1..).zip(&self.clients) {
                let name = format!("{}  NFSv{}", client.name, client.nfs);
                buffer.set_string(0, y, name, Style::new());
            }
            y += CLIENTS;
        }
        buffer.set_string(0, AXIS, "since start", dim());
        let sum = |of: fn(&Client) -> u64| self.clients.iter().map(of).sum::<u64>();
        let (refused, stolen) = (sum(|client| client.refused), sum(|client| client.stolen));
        let thief = format!(
            "c9 tries to steal the locks of the others: refused {refused} times, granted {stolen} times"
        );
        buffer.set_string(0, AXIS + 1, thief, Style::new());
        buffer
    }
}

/// A line as wide as the picture, with this in it.
fn title(text: &str) -> String {
    let begun = format!("── {text} ");
    format!("{begun:─<0$}", WIDTH.into())
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// The command, and the last lines of what it printed.
fn terminal(said: &[String]) -> Vec<(String, Style)> {
    let Some((command, printed)) = said.split_first() else {
        return vec![("a#".to_owned(), Style::new())];
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![(format!("a# {command}"), bold)];
    let printed: Vec<_> = printed.iter().flat_map(|line| wrapped(line)).collect();
    let room = usize::from(SAID) - 2;
    let last = &printed[printed.len().saturating_sub(room)..];
    lines.extend(last.iter().cloned());
    lines
}

/// Cut between words where it is too long.
fn wrapped(said: &str) -> Vec<(String, Style)> {
    let style = match said.trim_start().starts_with('✓') {
        true => Style::new().fg(Color::Green),
        false => Style::new(),
    };
    let indent = said.len() - said.trim_start().len();
    let mut lines: Vec<String> = Vec::new();
    for word in said.split_whitespace() {
        match lines.last_mut() {
            None => lines.push(format!("{:indent$}{word}", "")),
            Some(line) if line.chars().count() + word.chars().count() < WIDTH.into() => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("{:indent$}  {word}", "")),
        }
    }
    lines.into_iter().map(|line| (line, style)).collect()
}

/// The table of `nlmfo watch`, without what it says of its machine above.
fn table(app: &App, buffer: &mut Buffer, y: u16) {
    // Too low for more than the table, and what is above it.
    let mut screen = Buffer::empty(Rect::new(0, 0, WATCH, 8));
    draw(app, &THEME, &mut screen);
    let is_heading = |row: &u16| screen[(0, *row)].symbol() == "V";
    let heading = (0..screen.area.height).find(is_heading).unwrap_or(0);
    for row in 0..TABLE {
        for x in 0..WATCH {
            let mut cell = screen[(x, heading + row)].clone();
            // Nobody selects here.
            cell.modifier.remove(Modifier::REVERSED);
            buffer[(x, y + row)] = cell;
        }
    }
}

/// The bars of all clients.
fn bars(lines: &[Line], shown: &Range<u64>, command: u64) -> Result<Bars> {
    let moved = moved(lines, command).context("the server never left its node")?;
    let x = |column: u16| f64::from(column) * CELL.0 + MARGIN;
    let y = |line: u16| f64::from(line) * CELL.1 + MARGIN;
    let lanes = Lanes {
        lines,
        shown: shown.clone(),
        across: x(NAME)..x(WIDTH),
    };
    let mut svg = lanes.axis(AXIS, command);
    let mut line = LANES;
    for (_, moves, silent) in VIPS {
        let moved = if moves { moved } else { u64::MAX };
        for client in 0..CLIENTS - 2 {
            svg.push_str(&lanes.bar(line + 1 + client, client.into(), silent, moved));
        }
        line += CLIENTS;
    }
    Ok(Bars {
        svg,
        across: lanes.across,
        down: y(LANES)..y(AXIS + 1),
    })
}

/// The picture of a recording.
pub fn picture(recording: &Path) -> Result<String> {
    let text = std::fs::read_to_string(recording).context("the recording")?;
    let lines = text.lines().map(serde_json::from_str::<Line>);
    let lines: Vec<Line> = (lines.collect::<Result<_, _>>()).context("the recording")?;
    let said = lines
        .iter()
        .filter(|line| matches!(line.seen, Seen::Said(_)));
    let said: Vec<u64> = said.map(|line| line.at_ms).collect();
    let [command, .., done] = said[..] else {
        bail!("the recording has no command that prints something");
    };
    let shown = command.saturating_sub(BEFORE)..done + AFTER;
    let bars = bars(&lines, &shown, command)?;

    let mut scene = Scene::default();
    let mut frames = Vec::new();
    let mut lines = lines.into_iter().peekable();
    for at in shown.clone().step_by(STEP) {
        while let Some(line) = lines.next_if(|line| line.at_ms <= at) {
            scene.take(line);
        }
        frames.push(Frame {
            cells: scene.cells(),
            seconds: STEP as f64 / 1000.0 / SPEED,
        });
    }
    if let Some(last) = frames.last_mut() {
        last.seconds += PAUSE;
    }
    moving(&frames, &bars, PAUSE).context("an empty recording")
}
