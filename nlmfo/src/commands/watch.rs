//! `nlmfo watch`: the live lock dashboard.

use std::fmt::{self, Write};
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow};

use super::{require_root, table};
use crate::cli::WatchArgs;
use crate::exit::{Exit, Failure};
use crate::kernel::lockd::{self, LockdError};
use crate::notify::state_dir::StateDir;
use crate::output;
use crate::ticks::latency;
use crate::ticks::live::Live;
use crate::ticks::world::World;
use crate::ui::draw::{Theme, text};
use crate::ui::run::{RunError, screen};
use crate::ui::source::error::RecordingError;
use crate::ui::source::live;
use crate::ui::source::recording::{Reader, Recorder};
use crate::ui::source::replay::Replay;
use crate::ui::state::Message;
use crate::ui::terminal::Screen;

pub fn run(args: &WatchArgs) -> Result<Exit, Failure> {
    if let Some(recording) = &args.replay {
        return replay(args, recording);
    }
    require_root()?;
    let state = StateDir::new(&args.state.state_dir);
    let mut live = Live::new(args.interval, &state)
        .context("cannot read the inode number of this network namespace")?;
    if args.once {
        return once(args, live);
    }
    let mut recorder = args.record.as_deref().map(Recorder::create).transpose()?;
    if args.json {
        loop {
            let tick = live.tick();
            if let Some(recorder) = &mut recorder {
                recorder.write(&tick)?;
            }
            if !output::list_json(&tick)? {
                return Ok(Exit::Done);
            }
            thread::sleep(live.interval());
        }
    }
    require_terminal()?;
    shown(screen(&theme(args), move |effects, send| {
        let mut outcome = Ok(());
        live::run(live, &effects, |tick| {
            if let Some(recorder) = &mut recorder {
                outcome = recorder.write(&tick);
            }
            outcome.is_ok() && send(Message::Tick(Box::new(tick)))
        });
        outcome
    }))
}

/// Two ticks: rates are of the time between them.
fn once(args: &WatchArgs, mut live: Live) -> Result<Exit, Failure> {
    if !lockd::is_loaded() {
        return Err(Failure::new(Exit::Unsupported, LockdError::NotLoaded));
    }
    live.attach()?;
    let mut world = World::default();
    let first = live.tick();
    world.take(first.clone());
    thread::sleep(args.interval);
    let mut second = live.tick();
    if args.json {
        // A reader of a single record has no other record with details.
        let told: Vec<_> = second.details.iter().map(|detail| detail.vip).collect();
        let before = first.details.into_iter();
        second
            .details
            .extend(before.filter(|detail| !told.contains(&detail.vip)));
        output::list_json(&second)?;
        return Ok(Exit::Done);
    }
    world.take(second);
    show_table(&world, &theme(args))
}

/// Plays a recording; works without root and on any kernel.
fn replay(args: &WatchArgs, recording: &Path) -> Result<Exit, Failure> {
    let (mut reader, first) = Reader::open(recording)?;
    if args.once {
        let mut world = World::default();
        world.take(first);
        while let Some(tick) = reader.next_tick()? {
            world.take(tick);
        }
        return show_table(&world, &theme(args));
    }
    require_terminal()?;
    let replay = Replay::new(reader, first, args.speed);
    shown(screen(&theme(args), move |effects, send| {
        replay.run(&effects, send)
    }))
}

impl From<RecordingError> for Failure {
    fn from(error: RecordingError) -> Self {
        Failure::new(Exit::CouldNotRun, error)
    }
}

fn shown(outcome: Result<(), RunError<RecordingError>>) -> Result<Exit, Failure> {
    match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(RunError::Source(error)) => Err(error.into()),
        Err(RunError::Terminal(error)) => {
            Err(anyhow!(error).context("cannot use the terminal").into())
        }
    }
}

fn theme(args: &WatchArgs) -> Theme {
    // https://no-color.org: whatever its value, unless that is empty.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Theme {
        colour: !no_colour,
        ascii: args.ascii || !output::is_utf8(),
    }
}

fn require_terminal() -> Result<(), Failure> {
    let why = match Screen::is_there() {
        true if !output::is_dumb() => return Ok(()),
        true => "the terminal cannot show a screen (TERM is dumb)",
        false => "standard output is not a terminal",
    };
    Err(anyhow!("{why}; use --once for a table or --json for records").into())
}

fn show_table(world: &World, theme: &Theme) -> Result<Exit, Failure> {
    output::list(|out| print_table(out, world, theme))?;
    let troubles = world.tick.iter().flat_map(|tick| &tick.troubles);
    for trouble in troubles {
        output::note(trouble);
    }
    Ok(Exit::Done)
}

fn print_table(out: &mut impl Write, world: &World, theme: &Theme) -> fmt::Result {
    let rows = world.vips().iter().map(|vip| {
        let series = world.series.get(&vip.vip).cloned().unwrap_or_default();
        let (half, most) = series.percentiles();
        let latency = |time| match time {
            Some(time) => latency::short(time, theme.ascii),
            None => "-".to_owned(),
        };
        [
            vip.vip.to_string(),
            vip.held.to_string(),
            vip.waiters.to_string(),
            vip.shares.to_string(),
            vip.clients.to_string(),
            vip.held4_text(),
            text::rate(series.rates.granted),
            text::rate(series.rates.released),
            text::rate(series.rates.denied),
            latency(half),
            latency(most),
            theme.state(&vip.state).text(),
        ]
    });
    let headings = [
        "VIP", "HELD", "WAIT", "SHARES", "CLIENTS", "NFSV4", "GRANT/s", "REL/s", "DENY/s", "P50",
        "P99", "STATE",
    ];
    table::write(out, headings, rows)?;
    for client in world.tick.iter().flat_map(|tick| &tick.not_connected) {
        writeln!(out, "NFSv4 client {client}")?;
    }
    Ok(())
}
