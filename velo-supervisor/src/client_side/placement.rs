//! Which worker a stream goes to: an idle one, else a new one, else the one with the fewest streams.
//! Pure: it looks at figures, and knows no link.

/// A worker that this client has a link to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The worker's number: older workers have lower ones.
    pub worker: u32,
    /// How many streams of this client it has.
    pub streams: usize,
    /// Whether one of those has a habit of holding its neighbours up.
    pub slow: bool,
    /// It takes no more streams.
    pub leaving: bool,
}

/// What to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It goes to the worker at this place of the list.
    Use(usize),
    /// It goes to a new worker, if one can be had.
    Grow,
}

/// The places of the workers that take streams: the oldest `most` of them.
pub fn usable(workers: &[Candidate], most: usize) -> Vec<usize> {
    let mut usable: Vec<usize> = (0..workers.len())
        .filter(|&at| !workers[at].leaving)
        .collect();
    usable.sort_by_key(|&at| workers[at].worker);
    usable.truncate(most);
    usable
}

/// Of these places, that of the worker with the fewest streams, rather one where no stream holds its
/// neighbours up.
pub fn least_loaded(workers: &[Candidate], places: &[usize]) -> Option<usize> {
    let load = |at: usize| (workers[at].slow, workers[at].streams);
    places.iter().copied().min_by_key(|&at| load(at))
}

/// Chooses for one stream of a client that spreads its streams over `most` workers.
pub fn choose(workers: &[Candidate], most: usize) -> Choice {
    let usable = usable(workers, most);
    match least_loaded(workers, &usable) {
        Some(at) if usable.len() >= most || workers[at].streams == 0 => Choice::Use(at),
        _ => Choice::Grow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_streams(worker: u32, streams: usize) -> Candidate {
        Candidate {
            worker,
            streams,
            slow: false,
            leaving: false,
        }
    }

    #[test]
    fn an_idle_worker_goes_before_a_new_one() {
        let workers = [with_streams(1, 3), with_streams(2, 0)];
        assert_eq!(choose(&workers, 4), Choice::Use(1));
    }

    #[test]
    fn a_new_worker_goes_before_one_that_has_streams() {
        assert_eq!(choose(&[], 2), Choice::Grow);
        assert_eq!(choose(&[with_streams(1, 1)], 2), Choice::Grow);
    }

    #[test]
    fn with_all_workers_there_the_one_with_the_fewest_streams_is_chosen() {
        let workers = [with_streams(1, 3), with_streams(2, 2), with_streams(3, 2)];
        assert_eq!(choose(&workers, 3), Choice::Use(1), "the oldest of equals");
    }

    #[test]
    fn a_worker_that_leaves_is_not_chosen_and_not_counted() {
        let leaving = Candidate {
            leaving: true,
            ..with_streams(1, 0)
        };
        assert_eq!(choose(&[leaving, with_streams(2, 5)], 1), Choice::Use(1));
        assert_eq!(choose(&[leaving, with_streams(2, 5)], 2), Choice::Grow);
    }

    #[test]
    fn a_worker_with_a_slow_stream_comes_last() {
        let slow = Candidate {
            slow: true,
            ..with_streams(1, 1)
        };
        assert_eq!(choose(&[slow, with_streams(2, 9)], 2), Choice::Use(1));
    }

    #[test]
    fn no_more_workers_are_used_than_were_asked_for() {
        let workers = [with_streams(3, 0), with_streams(1, 2), with_streams(2, 1)];
        assert_eq!(choose(&workers, 2), Choice::Use(2));
    }
}
