//! The time table of a lab run.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// What a scenario took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub all: f64,
    /// Of the machine's processors.
    pub busy: f64,
    /// Waiting for nlmfo.
    pub tool: f64,
    /// Making the machine as new afterwards.
    pub sweep: f64,
}

/// Takes times while scenarios run, and shows them in the end.
#[derive(Default)]
pub struct Times {
    scenarios: Mutex<Vec<(String, Took)>>,
    machines: Mutex<Machines>,
}

/// The machines together.
#[derive(Clone, Copy, Default)]
struct Machines {
    number: u32,
    boot: Duration,
    up: Duration,
    busy: Duration,
}

impl Times {
    /// A scenario has run.
    pub fn scenario(&self, what: String, took: Took) {
        let mut scenarios = self.scenarios.lock().expect("no panic while held");
        scenarios.push((what, took));
    }

    /// A machine has ended.
    pub fn machine(&self, boot: Duration, up: Duration, busy: Duration) {
        let mut machines = self.machines.lock().expect("no panic while held");
        machines.number += 1;
        machines.boot += boot;
        machines.up += up;
        machines.busy += busy;
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Took {
            all,
            busy,
            tool,
            sweep,
        } = self;
        write!(f, "{all:9.1}  {busy:9.1}  {tool:9.1}  {sweep:9.1}")
    }
}

/// The slowest first.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.scenarios.lock().expect("no panic while held");
        rows.sort_by(|(_, a), (_, b)| b.all.total_cmp(&a.all));
        writeln!(f, "times of the lab in seconds:\n")?;
        writeln!(f, "      all  processor   in nlmfo      sweep  scenario")?;
        let mut sum = Took::default();
        for (what, took) in rows.iter() {
            writeln!(f, "{took}  {what}")?;
            sum.all += took.all;
            sum.busy += took.busy;
            sum.tool += took.tool;
            sum.sweep += took.sweep;
        }
        writeln!(f, "{sum}  all of these")?;
        let machines = *self.machines.lock().expect("no panic while held");
        write!(
            f,
            "\n{} machines were up for {:.0} s and used {:.0} s of processor time; of that \
             time {:.0} s were boots",
            machines.number,
            machines.up.as_secs_f64(),
            machines.busy.as_secs_f64(),
            machines.boot.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_comes_first() {
        let times = Times::default();
        let took = |all| Took {
            all,
            busy: 0.5,
            tool: 0.25,
            sweep: 2.0,
        };
        times.scenario("trixie::quick".into(), took(1.0));
        times.scenario("trixie::slow".into(), took(9.0));
        let ms = Duration::from_millis;
        times.machine(ms(4000), ms(15_000), ms(8000));
        let expected = "\
times of the lab in seconds:

      all  processor   in nlmfo      sweep  scenario
      9.0        0.5        0.2        2.0  trixie::slow
      1.0        0.5        0.2        2.0  trixie::quick
     10.0        1.0        0.5        4.0  all of these

1 machines were up for 15 s and used 8 s of processor time; of that time 4 s were boots";
        assert_eq!(times.to_string(), expected);
    }
}
