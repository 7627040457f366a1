//! The queue of scenarios, grouped by machine.

use std::sync::{Condvar, Mutex, MutexGuard};

use crate::scenarios::Manager;

/// Maximum number of scenarios per machine: a kernel fault ends the machine.
const AT_MOST: usize = 8;

/// Clusters at once, while there is other work: each is three machines.
const CLUSTERS: usize = 1;

/// The kind of machine that a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Shared,
    Own,
    Cluster,
}

/// A scenario to be run on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Index in the list of kernels.
    pub kernel: usize,
    pub scenario: &'static str,
    pub place: Place,
    /// What its machine, or the servers of its cluster, have installed.
    pub manager: Option<Manager>,
    /// Of each machine.
    pub processors: u32,
    /// Which try this is, from 1.
    pub tries: u32,
}

/// Jobs of one kernel, place and number of processors, for one machine or cluster, in this
/// order.
pub type Work = Vec<Job>;

/// Work for several workers.
pub struct Queue {
    workers: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: Vec<Job>,
    /// Works that have been taken and are not done.
    running: usize,
    clusters: usize,
}

impl Queue {
    pub fn new(jobs: Vec<Job>, workers: usize) -> Queue {
        Queue {
            workers,
            state: Mutex::new(State {
                jobs,
                running: 0,
                clusters: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Returns the next work; waits while running work may be repeated. `None` when all is done.
    pub fn take(&self) -> Option<Work> {
        let mut state = self.state();
        loop {
            let work = state.next(self.workers);
            if let Some(first) = work.first() {
                state.running += 1;
                state.clusters += usize::from(first.place == Place::Cluster);
                return Some(work);
            }
            if state.running == 0 {
                return None;
            }
            state = self.changed.wait(state).expect("no panic while held");
        }
    }

    /// Marks work as done; `again` is to be repeated.
    pub fn done(&self, was_cluster: bool, again: Vec<Job>) {
        let mut state = self.state();
        state.running -= 1;
        state.clusters -= usize::from(was_cluster);
        state.jobs.extend(again);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl State {
    /// Clusters first, as they take longest, but with other work beside them; then of the
    /// kernel with most left, in ever smaller pieces, so that all workers end together.
    fn next(&mut self, workers: usize) -> Work {
        let is_cluster = |job: &Job| job.place == Place::Cluster;
        let only_clusters = self.jobs.iter().all(is_cluster);
        if (self.clusters < CLUSTERS || only_clusters)
            && let Some(at) = self.jobs.iter().position(is_cluster)
        {
            return vec![self.jobs.remove(at)];
        }
        let left = |kernel: usize| {
            let of_kernel = |job: &&Job| job.kernel == kernel && !is_cluster(job);
            self.jobs.iter().filter(of_kernel).count()
        };
        let kernels = self.jobs.iter().filter(|job| !is_cluster(job));
        let Some(kernel) = kernels.map(|job| job.kernel).max_by_key(|one| left(*one)) else {
            return Vec::new();
        };
        let own = |job: &Job| job.kernel == kernel && job.place == Place::Own;
        if let Some(at) = self.jobs.iter().position(own) {
            return vec![self.jobs.remove(at)];
        }
        let mut size = self.jobs.len().div_ceil(2 * workers).min(AT_MOST);
        let is_shared = |job: &Job| job.kernel == kernel && job.place == Place::Shared;
        let first = self.jobs.iter().find(|job| is_shared(job)).copied();
        let taken = self.jobs.extract_if(.., |job| {
            let fits = first.is_some_and(|first| first.processors == job.processors);
            let is_one = is_shared(job) && fits && size > 0;
            size -= usize::from(is_one);
            is_one
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection;
    use proptest::prelude::*;

    use super::*;

    fn jobs(place: Place, kernel: usize, scenarios: &[&'static str]) -> Vec<Job> {
        let job = |scenario: &&'static str| Job {
            kernel,
            scenario,
            place,
            manager: None,
            processors: 2,
            tries: 1,
        };
        scenarios.iter().map(job).collect()
    }

    fn names(work: Option<Work>) -> Vec<&'static str> {
        let work = work.into_iter().flatten();
        work.map(|job| job.scenario).collect()
    }

    #[test]
    fn a_cluster_runs_beside_other_work_and_machines_are_shared_ever_less() {
        let jobs = [
            jobs(Place::Shared, 0, &["a", "b", "c", "d", "e"]),
            jobs(Place::Own, 0, &["own"]),
            jobs(Place::Cluster, 0, &["x", "y"]),
            jobs(Place::Shared, 1, &["f"]),
        ];
        let queue = Queue::new(jobs.concat(), 2);
        assert_eq!(names(queue.take()), ["x"]);
        assert_eq!(names(queue.take()), ["own"]);
        assert_eq!(names(queue.take()), ["a", "b"]);
        queue.done(true, Vec::new());
        assert_eq!(names(queue.take()), ["y"]);
        assert_eq!(names(queue.take()), ["c"]);
        assert_eq!(names(queue.take()), ["d"]);
    }

    #[test]
    fn what_comes_back_is_waited_for() {
        let queue = Queue::new(jobs(Place::Shared, 0, &["a"]), 1);
        let first = queue.take().expect("a job");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.take());
            queue.done(false, first);
            assert_eq!(names(waiting.join().expect("no panic")), ["a"]);
        });
        queue.done(false, Vec::new());
        assert_eq!(queue.take(), None);
    }

    proptest! {
        /// Whatever there is, each job is handed out once, with others of its kernel and
        /// place, and only shared machines get several.
        #[test]
        fn every_job_is_run_once(
            places in collection::vec((0usize..3, 0u8..3, 1u32..3), 0..60),
            workers in 1usize..5,
        ) {
            let place = |number| [Place::Shared, Place::Own, Place::Cluster][usize::from(number)];
            let all: Vec<Job> = (places.iter())
                .enumerate()
                .map(|(number, (kernel, kind, processors))| Job {
                    processors: *processors,
                    tries: number as u32,
                    ..jobs(place(*kind), *kernel, &["one"])[0]
                })
                .collect();
            let queue = Queue::new(all.clone(), workers);
            let mut seen = Vec::new();
            while let Some(work) = queue.take() {
                let first = work[0];
                prop_assert!(work.len() == 1 || first.place == Place::Shared);
                prop_assert!(work.len() <= AT_MOST);
                let machine = |job: &Job| (job.kernel, job.place, job.processors);
                prop_assert!(work.iter().all(|job| machine(job) == machine(&first)));
                queue.done(first.place == Place::Cluster, Vec::new());
                seen.extend(work);
            }
            seen.sort_by_key(|job| job.tries);
            prop_assert_eq!(seen, all);
        }
    }
}
