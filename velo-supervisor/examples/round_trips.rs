//! The time of a round trip of one event to a Python function.
//!
//! ```sh
//! velo supervisor start --socket /tmp/velo.sock &
//! cargo run --release --example round_trips -- /tmp/velo.sock
//! ```
//!
//! Prints the median of five rounds for each figure. Compare it only with figures of the same machine
//! and hour, such as those of `velo bench`.

use std::error::Error;
use std::time::{Duration, Instant};

use velo_supervisor::stream::{Connection, Stream, StreamOptions};

const ROUNDS: usize = 5;
const ONE_BY_ONE: usize = 20_000;
const FED: usize = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os()
        .nth(1)
        .ok_or("give the supervisor's socket")?;
    let velo = Connection::connect(socket)?;
    let mut stream = velo.open("velo.bench.functions:passthrough", &StreamOptions::new())?;
    let event = "x".repeat(64);
    let (mut trips, mut late, mut fed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut times = one_by_one(&mut stream, &event)?;
        times.sort();
        trips.push(times[ONE_BY_ONE / 2]);
        late.push(times[ONE_BY_ONE * 99 / 100]);
        let began = Instant::now();
        let events = std::iter::repeat_n(&event, FED);
        let results = stream
            .feed::<String, _>(events)
            .filter(Result::is_ok)
            .count();
        assert_eq!(results, FED);
        fed.push(FED as f64 / began.elapsed().as_secs_f64());
    }
    fed.sort_by(f64::total_cmp);
    trips.sort();
    late.sort();
    let middle = ROUNDS / 2;
    println!(
        "64 bytes, one at a time: {:?}, p99 {:?}",
        trips[middle], late[middle]
    );
    println!("64 bytes, fed: {:.0} events/s", fed[middle]);
    Ok(())
}

fn one_by_one(stream: &mut Stream, event: &str) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut times = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        let began = Instant::now();
        stream.send(event)?;
        stream.recv::<String>()?.ok_or("the function has ended")?;
        times.push(began.elapsed());
    }
    Ok(times)
}
