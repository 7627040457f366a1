//! Where the time of a lab run went, as a table.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// What took time.
struct Row {
    what: String,
    seconds: f64,
    /// Processor seconds.
    busy: f64,
}

/// Takes times while scenarios run, and shows them in the end.
#[derive(Default)]
pub struct Times {
    scenarios: Mutex<Vec<Row>>,
    machines: Mutex<Machines>,
}

/// The machines together.
#[derive(Clone, Copy, Default)]
struct Machines {
    number: u32,
    boot: Duration,
    up: Duration,
    busy: Duration,
    sweeps: f64,
}

impl Times {
    /// A scenario has run: for so long, using so many processor seconds; and so long took
    /// making the machine as new.
    pub fn scenario(&self, what: String, seconds: f64, busy: f64, sweep: f64) {
        let row = Row {
            what,
            seconds,
            busy,
        };
        self.scenarios
            .lock()
            .expect("no panic while held")
            .push(row);
        self.machines.lock().expect("no panic while held").sweeps += sweep;
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

/// The slowest first.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.scenarios.lock().expect("no panic while held");
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        writeln!(f, "where the lab's time went:\n")?;
        writeln!(f, "  seconds  processor s  scenario")?;
        for row in rows.iter() {
            writeln!(f, "{:9.1} {:12.1}  {}", row.seconds, row.busy, row.what)?;
        }
        let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
        let busy: f64 = rows.iter().map(|row| row.busy).sum();
        writeln!(f, "{seconds:9.1} {busy:12.1}  all of these")?;
        let machines = *self.machines.lock().expect("no panic while held");
        write!(
            f,
            "\n{} machines were up for {:.0} s and used {:.0} s of processor time; of that \
             time {:.0} s were boots, {:.0} s sweeps between scenarios",
            machines.number,
            machines.up.as_secs_f64(),
            machines.busy.as_secs_f64(),
            machines.boot.as_secs_f64(),
            machines.sweeps,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_comes_first() {
        let times = Times::default();
        times.scenario("trixie::quick".into(), 1.0, 0.5, 0.25);
        times.scenario("trixie::slow".into(), 9.0, 3.0, 0.75);
        let ms = Duration::from_millis;
        times.machine(ms(4000), ms(15_000), ms(8000));
        let expected = "\
where the lab's time went:

  seconds  processor s  scenario
      9.0          3.0  trixie::slow
      1.0          0.5  trixie::quick
     10.0          3.5  all of these

1 machines were up for 15 s and used 8 s of processor time; of that time 4 s were boots, 1 s \
sweeps between scenarios";
        assert_eq!(times.to_string(), expected);
    }
}
