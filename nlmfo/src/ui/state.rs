//! The state of the screen, and how keys and ticks change it. Without input, output or clock:
//! [`App::update`] is a function of the state and a message.

use std::net::IpAddr;

use super::keys::Key;
use crate::ticks::events::Event;
use crate::ticks::tick::{Tick, VipTick};
use crate::ticks::world::World;

mod lines;

pub(crate) use lines::Line;

/// Lines that a page key moves.
const PAGE: usize = 10;

/// The longest filter.
const FILTER: usize = 64;

/// A message to the screen.
#[derive(Clone, Debug)]
pub enum Message {
    /// The operator has pressed a key.
    Key(Key),
    /// The next tick of the source.
    Tick(Box<Tick>),
    /// The progress of a replay.
    Playback(Playback),
    /// The terminal has another size.
    Resize,
    /// A signal to end.
    Quit,
}

/// A request to the source or the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The operator or a signal ends the screen.
    Quit,
    /// This VIP's detail goes before the others'.
    Open(Option<IpAddr>),
    /// For a replay.
    Play(Play),
}

/// A command to a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Play {
    /// Pauses, or goes on.
    PauseOrGo,
    /// Doubles the speed.
    Faster,
    /// Halves the speed.
    Slower,
    /// One tick, while it is paused.
    Step,
    /// Back to the first tick.
    Restart,
}

/// The position of a replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Playback {
    /// Playback speed, as a factor.
    pub speed: f64,
    /// The operator has paused it.
    pub paused: bool,
    /// The recording is at its end.
    pub ended: bool,
}

/// The pane in front; the overview is behind all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pane {
    Overview,
    /// `line` is the selected one, as in the others.
    Vip {
        vip: IpAddr,
        line: usize,
    },
    Events {
        line: usize,
    },
    Help {
        line: usize,
    },
}

/// The sort column of the overview; ties are sorted by address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    #[default]
    Vip,
    Held,
    Waiters,
    Granted,
    Denied,
    Slowest,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Sort::Vip => Sort::Held,
            Sort::Held => Sort::Waiters,
            Sort::Waiters => Sort::Granted,
            Sort::Granted => Sort::Denied,
            Sort::Denied => Sort::Slowest,
            Sort::Slowest => Sort::Vip,
        }
    }

    /// As the header says it.
    pub fn name(self) -> &'static str {
        match self {
            Sort::Vip => "VIP",
            Sort::Held => "held",
            Sort::Waiters => "waiters",
            Sort::Granted => "granted/s",
            Sort::Denied => "denied/s",
            Sort::Slowest => "p99",
        }
    }
}

/// The state of the screen.
#[derive(Clone, Debug, Default)]
pub struct App {
    live: World,
    /// What is shown instead while the screen is frozen.
    frozen: Option<Box<World>>,
    /// Behind one another, the front one last.
    panes: Vec<Pane>,
    selected: Option<IpAddr>,
    pub(crate) sort: Sort,
    filter: String,
    /// The filter is being typed; this is what Esc goes back to.
    before_typing: Option<String>,
    pub(crate) playback: Option<Playback>,
}

impl App {
    /// Applies a message and returns requests.
    pub fn update(&mut self, message: Message) -> Option<Effect> {
        match message {
            Message::Key(key) => self.key(key),
            Message::Tick(tick) => {
                self.live.take(*tick);
                None
            }
            Message::Playback(playback) => {
                self.playback = Some(playback);
                None
            }
            // The next drawing looks at it.
            Message::Resize => None,
            Message::Quit => Some(Effect::Quit),
        }
    }

    /// What is shown.
    pub(crate) fn world(&self) -> &World {
        self.frozen.as_deref().unwrap_or(&self.live)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub(crate) fn is_typing(&self) -> bool {
        self.before_typing.is_some()
    }

    pub(crate) fn filter(&self) -> &str {
        &self.filter
    }

    pub(crate) fn pane(&self) -> Pane {
        self.panes.last().copied().unwrap_or(Pane::Overview)
    }

    /// The overview's rows, filtered and in order.
    pub(crate) fn rows(&self) -> Vec<&VipTick> {
        let world = self.world();
        let filter = lines::Filter::new(&self.filter);
        let mut rows: Vec<&VipTick> = (world.vips().iter())
            .filter(|row| filter.takes_vip(world, row.vip))
            .collect();
        let series = |row: &VipTick| world.series.get(&row.vip);
        let rate = |row: &VipTick, of: fn(&crate::ticks::world::Rates) -> f64| {
            series(row).map_or(0.0, |series| of(&series.rates))
        };
        // The greatest first; the sort keeps the order of addresses among equals.
        match self.sort {
            Sort::Vip => {}
            Sort::Held => rows.sort_by_key(|row| std::cmp::Reverse(row.held)),
            Sort::Waiters => rows.sort_by_key(|row| std::cmp::Reverse(row.waiting())),
            Sort::Granted => rows.sort_by(|a, b| {
                rate(b, |rates| rates.granted).total_cmp(&rate(a, |rates| rates.granted))
            }),
            Sort::Denied => rows.sort_by(|a, b| {
                rate(b, |rates| rates.denied).total_cmp(&rate(a, |rates| rates.denied))
            }),
            Sort::Slowest => rows.sort_by_cached_key(|row| {
                let slowest = series(row).and_then(|series| series.percentiles().1);
                std::cmp::Reverse(slowest)
            }),
        }
        rows
    }

    /// The selected row's place among `rows`: the first if the selected VIP is not
    /// among them.
    pub fn selected(&self, rows: &[&VipTick]) -> usize {
        let is_selected = |row: &&VipTick| Some(row.vip) == self.selected;
        rows.iter().position(is_selected).unwrap_or(0)
    }

    /// The lines of a VIP's pane, filtered.
    pub fn vip_lines(&self, vip: IpAddr) -> Vec<Line> {
        lines::of_vip(self.world(), vip, &self.filter)
    }

    /// The events, filtered, the newest first.
    pub fn events(&self) -> Vec<&Event> {
        let filter = lines::Filter::new(&self.filter);
        (self.world().events.iter().rev())
            .filter(|event| filter.takes_event(event))
            .collect()
    }

    fn key(&mut self, key: Key) -> Option<Effect> {
        if key == Key::Interrupt {
            return Some(Effect::Quit);
        }
        if self.is_typing() {
            self.type_key(key);
            return None;
        }
        match key {
            Key::Up | Key::Char('k') => self.go(|line, _| line.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.go(|line, _| line + 1),
            Key::PageUp => self.go(|line, _| line.saturating_sub(PAGE)),
            Key::PageDown => self.go(|line, _| line + PAGE),
            Key::Home => self.go(|_, _| 0),
            Key::End => self.go(|_, last| last),
            Key::Enter => return self.enter(),
            Key::Escape => return self.back(),
            Key::Char('/') => self.before_typing = Some(self.filter.clone()),
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('f') => {
                self.frozen = match self.frozen {
                    Some(_) => None,
                    None => Some(Box::new(self.live.clone())),
                }
            }
            Key::Char('e') => self.toggle(Pane::Events { line: 0 }),
            Key::Char('?') => self.toggle(Pane::Help { line: 0 }),
            Key::Char('q') => return Some(Effect::Quit),
            Key::Char(char) if self.playback.is_some() => return play(char),
            Key::Char(_) | Key::Backspace | Key::Interrupt => {}
        }
        None
    }

    fn type_key(&mut self, key: Key) {
        match key {
            Key::Enter => self.before_typing = None,
            Key::Escape => self.filter = self.before_typing.take().unwrap_or_default(),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(char) if self.filter.len() < FILTER && !char.is_control() => {
                self.filter.push(char);
            }
            _ => {}
        }
    }

    /// Moves the selection; `to` takes the place that it has and the last one there is.
    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        let lines = match self.pane() {
            Pane::Overview => {
                let rows = self.rows();
                let last = rows.len().saturating_sub(1);
                let place = to(self.selected(&rows), last).min(last);
                self.selected = rows.get(place).map(|row| row.vip);
                return;
            }
            Pane::Vip { vip, .. } => self.vip_lines(vip).len(),
            Pane::Events { .. } => self.events().len(),
            Pane::Help { .. } => super::draw::HELP_LINES,
        };
        let last = lines.saturating_sub(1);
        if let Some(Pane::Vip { line, .. } | Pane::Events { line } | Pane::Help { line }) =
            self.panes.last_mut()
        {
            // There may be fewer lines than when it was selected.
            *line = to((*line).min(last), last).min(last);
        }
    }

    fn enter(&mut self) -> Option<Effect> {
        let vip = match self.pane() {
            Pane::Overview => {
                let rows = self.rows();
                rows.get(self.selected(&rows))?.vip
            }
            // From an event to the VIP that it is of.
            Pane::Events { line } => self.events().get(line)?.vip?,
            Pane::Vip { .. } | Pane::Help { .. } => return None,
        };
        self.world().vip(vip)?;
        self.selected = Some(vip);
        // One pane of a kind: the way back stays short.
        self.panes.retain(|pane| !matches!(pane, Pane::Vip { .. }));
        self.panes.push(Pane::Vip { vip, line: 0 });
        Some(Effect::Open(Some(vip)))
    }

    fn back(&mut self) -> Option<Effect> {
        match self.panes.pop() {
            Some(Pane::Vip { .. }) => Some(Effect::Open(None)),
            Some(_) => None,
            None => {
                self.filter.clear();
                None
            }
        }
    }

    fn toggle(&mut self, pane: Pane) {
        let is_kind = |other: &Pane| std::mem::discriminant(other) == std::mem::discriminant(&pane);
        let in_front = is_kind(&self.pane());
        self.panes.retain(|other| !is_kind(other));
        if !in_front {
            self.panes.push(pane);
        }
    }
}

fn play(char: char) -> Option<Effect> {
    Some(Effect::Play(match char {
        ' ' => Play::PauseOrGo,
        '+' | '=' => Play::Faster,
        '-' => Play::Slower,
        '.' => Play::Step,
        'r' => Play::Restart,
        _ => return None,
    }))
}
