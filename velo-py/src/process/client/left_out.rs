//! The events of a stream that no worker is given any more.

use std::collections::VecDeque;

/// The numbers of the events that are left out, in order.
#[derive(Debug, Default)]
pub struct LeftOut(VecDeque<u64>);

impl LeftOut {
    /// Leaves an event out.
    pub fn add(&mut self, number: u64) {
        let at = self.0.partition_point(|&other| other < number);
        if self.0.get(at) != Some(&number) {
            self.0.insert(at, number);
        }
    }

    /// Whether this event is left out.
    pub fn contains(&self, number: u64) -> bool {
        self.0.contains(&number)
    }

    /// How many events are left out.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The number of the last of `count` events that a worker was done with, which begins behind the
    /// event `before`. The events that are left out right behind it count as done too.
    pub fn number_of(&self, before: u64, count: u64) -> u64 {
        let mut number = before + count;
        for &left_out in &self.0 {
            if left_out > before && left_out <= number + 1 {
                number += 1;
            }
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(numbers: &[u64]) -> LeftOut {
        let mut left_out = LeftOut::default();
        numbers.iter().for_each(|&number| left_out.add(number));
        left_out
    }

    #[test]
    fn without_any_a_worker_counts_from_where_it_began() {
        assert_eq!(LeftOut::default().number_of(0, 3), 3);
        assert_eq!(LeftOut::default().number_of(7, 3), 10);
    }

    #[test]
    fn events_that_are_left_out_are_passed_over() {
        let two = left_out(&[5, 3]);
        assert_eq!(two.number_of(0, 1), 1);
        assert_eq!(two.number_of(0, 2), 3, "the third is done with the second");
        assert_eq!(two.number_of(0, 3), 5);
        assert_eq!(two.number_of(0, 4), 6);
        assert_eq!(
            two.number_of(3, 1),
            5,
            "those before its first event do not count"
        );
    }

    #[test]
    fn events_in_a_row_are_passed_over_together() {
        assert_eq!(left_out(&[2, 3, 4]).number_of(0, 1), 4);
        assert_eq!(left_out(&[1]).number_of(0, 0), 1);
    }

    #[test]
    fn an_event_is_left_out_once() {
        let mut twice = left_out(&[4]);
        twice.add(4);
        assert_eq!(
            (twice.len(), twice.contains(4), twice.contains(5)),
            (1, true, false)
        );
    }
}
