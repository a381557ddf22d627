//! Which worker a stream goes to: an idle one, else a new one, else the one with the fewest streams.
//! Every client calls this rule, whatever its language. Pure: it looks at figures, and knows no link.

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
    /// The stream comes from there, and is to go elsewhere. It counts as one of the client's workers.
    pub avoided: bool,
}

/// What to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It goes to the worker at this place of the list.
    Use(usize),
    /// It goes to a new worker, if one can be had.
    Grow,
}

/// The places of the workers that take the stream: those of the oldest `most` that are not avoided.
pub fn usable(workers: &[Candidate], most: usize) -> Vec<usize> {
    let mut usable: Vec<usize> = (0..workers.len())
        .filter(|&at| !workers[at].leaving)
        .collect();
    usable.sort_by_key(|&at| workers[at].worker);
    usable.truncate(most);
    usable.retain(|&at| !workers[at].avoided);
    usable
}

/// The usable worker with the fewest streams. One where no stream holds its neighbours up goes first.
pub fn least_loaded(workers: &[Candidate], most: usize) -> Option<usize> {
    least(workers, &usable(workers, most))
}

/// Chooses for one stream of a client that spreads its streams over `most` workers.
pub fn choose(workers: &[Candidate], most: usize) -> Choice {
    let usable = usable(workers, most);
    match least(workers, &usable) {
        Some(at) if usable.len() >= most || workers[at].streams == 0 => Choice::Use(at),
        _ => Choice::Grow,
    }
}

/// A worker with fewer streams than its share will be once all `most` workers have started. A stream
/// need not wait for a new worker then: the new one is for other streams. `placing` streams of this
/// client wait for a worker now.
pub fn below_share(workers: &[Candidate], most: usize, placing: usize) -> Option<usize> {
    let usable = usable(workers, most);
    let at = least(workers, &usable)?;
    let streams: usize = usable.iter().map(|&at| workers[at].streams).sum();
    let below = workers[at].streams.saturating_mul(most) < streams + placing;
    (below && !workers[at].slow).then_some(at)
}

fn least(workers: &[Candidate], places: &[usize]) -> Option<usize> {
    let load = |at: usize| (workers[at].slow, workers[at].streams);
    places.iter().copied().min_by_key(|&at| load(at))
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
            avoided: false,
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

    #[test]
    fn an_avoided_worker_is_counted_and_not_chosen() {
        let left = Candidate {
            avoided: true,
            ..with_streams(1, 0)
        };
        let other = with_streams(2, 5);
        assert_eq!(least_loaded(&[left, other], 2), Some(1));
        assert_eq!(least_loaded(&[left, other], 1), None);
        assert_eq!(choose(&[left, other], 2), Choice::Grow);
        assert_eq!(choose(&[left, with_streams(2, 0)], 2), Choice::Use(1));
    }

    #[test]
    fn a_stream_waits_for_a_new_worker_only_if_the_others_have_their_share() {
        let workers = [with_streams(1, 1), with_streams(2, 2)];
        assert_eq!(
            below_share(&workers, 4, 1),
            None,
            "1 of 4, which is a fourth"
        );
        assert_eq!(
            below_share(&workers, 4, 2),
            Some(0),
            "1 of 5, which is less"
        );
        let slow = Candidate {
            slow: true,
            ..with_streams(1, 1)
        };
        assert_eq!(below_share(&[slow], 4, 9), None);
        assert_eq!(below_share(&[], 4, 9), None);
    }
}
