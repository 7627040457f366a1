//! Plays a recording tick by tick, at its original speed or another one.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::error::RecordingError;
use super::recording::Reader;
use crate::ticks::tick::Tick;
use crate::ui::state::{Effect, Message, Play, Playback};

/// Factor between two speeds.
const FACTOR: f64 = 2.0;
const SLOWEST: f64 = 1.0 / 16.0;
const FASTEST: f64 = 1024.0;

/// A recording being played.
#[derive(Debug)]
pub struct Replay {
    reader: Reader,
    /// The tick that comes next.
    next: Option<Tick>,
    playback: Playback,
    /// [`Tick::elapsed_ms`] of the last one.
    shown_ms: Option<u64>,
}

impl Replay {
    pub fn new(reader: Reader, first: Tick, speed: f64) -> Self {
        Replay {
            reader,
            next: Some(first),
            playback: Playback {
                speed: speed.clamp(SLOWEST, FASTEST),
                paused: false,
                ended: false,
            },
            shown_ms: None,
        }
    }

    /// Sends ticks until the receiver is gone.
    ///
    /// # Errors
    /// If the recording turns out to be damaged further on.
    pub fn run(
        mut self,
        effects: &Receiver<Effect>,
        mut send: impl FnMut(Message) -> bool,
    ) -> Result<(), RecordingError> {
        while send(Message::Playback(self.playback)) {
            match self.wait(effects) {
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(tick) = self.step()?
                        && !send(Message::Tick(Box::new(tick)))
                    {
                        break;
                    }
                }
                Ok(Effect::Play(play)) => {
                    if let Some(tick) = self.play(play)?
                        && !send(Message::Tick(Box::new(tick)))
                    {
                        break;
                    }
                }
                Ok(Effect::Open(_) | Effect::Quit) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    /// Until the next tick is due, or something is asked for.
    fn wait(&self, effects: &Receiver<Effect>) -> Result<Effect, RecvTimeoutError> {
        match self.due() {
            Some(time) => effects.recv_timeout(time),
            None => effects.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// How long until the next tick; none if none comes by itself.
    fn due(&self) -> Option<Duration> {
        let next = self.next.as_ref().filter(|_| !self.playback.paused)?;
        let shown = self.shown_ms.unwrap_or(next.elapsed_ms);
        let recorded = Duration::from_millis(next.elapsed_ms.saturating_sub(shown));
        Some(recorded.div_f64(self.playback.speed))
    }

    fn step(&mut self) -> Result<Option<Tick>, RecordingError> {
        let tick = self.next.take();
        if let Some(tick) = &tick {
            self.shown_ms = Some(tick.elapsed_ms);
            self.next = self.reader.next_tick()?;
        }
        self.playback.ended = self.next.is_none();
        Ok(tick)
    }

    /// Executes a command; returns a tick if it shows one.
    fn play(&mut self, play: Play) -> Result<Option<Tick>, RecordingError> {
        let playback = &mut self.playback;
        match play {
            Play::PauseOrGo => playback.paused = !playback.paused,
            Play::Faster => playback.speed = (playback.speed * FACTOR).min(FASTEST),
            Play::Slower => playback.speed = (playback.speed / FACTOR).max(SLOWEST),
            Play::Step => {
                playback.paused = true;
                return self.step();
            }
            Play::Restart => {
                let (reader, first) = Reader::open(self.reader.path())?;
                self.reader = reader;
                self.next = Some(first);
                self.shown_ms = None;
                return self.step();
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::samples as ticks;
    use crate::ui::source::recording::Recorder;
    use std::sync::mpsc;

    /// Three ticks, a second apart.
    fn replay(speed: f64) -> (tempfile::TempDir, Replay) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path).unwrap();
        let mut tick = ticks::one_vip();
        for _ in 0..3 {
            recorder.write(&tick).unwrap();
            tick.elapsed_ms += 1_000;
        }
        let (reader, first) = Reader::open(&path).unwrap();
        (folder, Replay::new(reader, first, speed))
    }

    #[test]
    fn it_takes_the_time_that_it_took_by_its_speed() {
        let (_folder, mut replay) = replay(4.0);
        assert_eq!(replay.due(), Some(Duration::ZERO));
        replay.step().unwrap();
        assert_eq!(replay.due(), Some(Duration::from_millis(250)));
        replay.play(Play::Faster).unwrap();
        assert_eq!(replay.due(), Some(Duration::from_millis(125)));
        replay.play(Play::PauseOrGo).unwrap();
        assert_eq!(replay.due(), None);
    }

    #[test]
    fn steps_go_to_the_end_and_it_begins_again() {
        let (_folder, mut replay) = replay(1.0);
        let mut steps = 0;
        while replay.play(Play::Step).unwrap().is_some() {
            steps += 1;
        }
        assert_eq!(steps, 3);
        assert!(replay.playback.ended && replay.playback.paused);
        assert!(replay.play(Play::Restart).unwrap().is_some());
        assert!(!replay.playback.ended);
    }

    #[test]
    fn it_sends_all_ticks_and_ends_with_who_listens() {
        let (_folder, replay) = replay(FASTEST);
        let (asked, effects) = mpsc::channel();
        let mut seen = 0;
        let mut asked = Some(asked);
        replay
            .run(&effects, |message| {
                seen += usize::from(matches!(message, Message::Tick(_)));
                if matches!(message, Message::Playback(playback) if playback.ended) {
                    asked = None;
                }
                true
            })
            .unwrap();
        assert_eq!(seen, 3);
    }
}
