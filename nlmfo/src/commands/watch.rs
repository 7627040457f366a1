//! `nlmfo watch`: the live lock dashboard.

use std::io::{self, Write};
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow};

use super::{require_root, table};
use crate::cli::WatchArgs;
use crate::exit::{Exit, Failure};
use crate::kernel::lockd::{self, LockdError};
use crate::notify::state_dir::StateDir;
use crate::ui::draw::{Theme, text};
use crate::ui::latency;
use crate::ui::run::{RunError, screen};
use crate::ui::source::live::Live;
use crate::ui::source::recording::{Reader, Recorder, RecordingError, write_line};
use crate::ui::source::replay::Replay;
use crate::ui::state::Message;
use crate::ui::terminal::Screen;
use crate::ui::tick::Tick;
use crate::ui::world::World;

pub fn run(args: &WatchArgs) -> Result<Exit, Failure> {
    if let Some(recording) = &args.replay {
        return replay(args, recording);
    }
    require_root()?;
    let state = StateDir::new(&args.state.state_dir);
    let mut live =
        Live::new(args.interval, &state).context("reading this network namespace's number")?;
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
            if !print(&tick)? {
                return Ok(Exit::Done);
            }
            thread::sleep(live.interval());
        }
    }
    require_terminal()?;
    shown(screen(&theme(args), move |effects, send| {
        let mut outcome = Ok(());
        live.run(&effects, |tick| {
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
        return Err(Failure::new(Exit::Lacking, LockdError::NotLoaded));
    }
    live.attach()?;
    let mut world = World::default();
    let first = live.tick();
    world.take(first.clone());
    thread::sleep(args.interval);
    let mut second = live.tick();
    if args.json {
        // Whoever reads one record has no other to find details in.
        let told: Vec<_> = second.details.iter().map(|detail| detail.vip).collect();
        let before = first.details.into_iter();
        second
            .details
            .extend(before.filter(|detail| !told.contains(&detail.vip)));
        print(&second)?;
        return Ok(Exit::Done);
    }
    world.take(second);
    print_table(&world, &theme(args)).context("writing to standard output")?;
    Ok(Exit::Done)
}

/// Needs no root and no kernel of ours.
fn replay(args: &WatchArgs, recording: &Path) -> Result<Exit, Failure> {
    let (mut reader, first) = Reader::open(recording)?;
    if args.once {
        let mut world = World::default();
        world.take(first);
        while let Some(tick) = reader.next_tick()? {
            world.take(tick);
        }
        print_table(&world, &theme(args)).context("writing to standard output")?;
        return Ok(Exit::Done);
    }
    require_terminal()?;
    let replay = Replay::new(reader, first, args.speed);
    shown(screen(&theme(args), move |effects, send| {
        replay.run(&effects, send)
    }))
}

fn shown(outcome: Result<(), RunError<RecordingError>>) -> Result<Exit, Failure> {
    match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(RunError::Source(error)) => Err(error.into()),
        Err(RunError::Terminal(error)) => Err(anyhow!(error).context("using the terminal").into()),
    }
}

fn theme(args: &WatchArgs) -> Theme {
    // https://no-color.org: whatever its value, unless that is empty.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Theme {
        colour: !no_colour,
        ascii: args.ascii,
    }
}

fn require_terminal() -> Result<(), Failure> {
    match Screen::is_there() {
        true => Ok(()),
        false => Err(anyhow!(
            "standard output is no terminal to draw on; --once prints a table, --json records"
        )
        .into()),
    }
}

/// False when nobody reads any more.
fn print(tick: &Tick) -> Result<bool, Failure> {
    match write_line(&mut io::BufWriter::new(io::stdout().lock()), tick) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow!(error).context("writing to standard output").into()),
    }
}

fn print_table(world: &World, theme: &Theme) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
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
            text::rate(series.rates.granted),
            text::rate(series.rates.released),
            text::rate(series.rates.denied),
            latency(half),
            latency(most),
            theme.state(&vip.state).text(),
        ]
    });
    let headings = [
        "VIP", "HELD", "WAIT", "SHARES", "CLIENTS", "GRANT/s", "REL/s", "DENY/s", "P50", "P99",
        "STATE",
    ];
    table::write(&mut out, headings, rows)?;
    out.flush()?;
    let troubles = world.tick.iter().flat_map(|tick| &tick.troubles);
    for trouble in troubles {
        eprintln!("nlmfo: {trouble}");
    }
    Ok(())
}
