//! Feeds a Python stream function from Rust: one stream per aircraft, over every flight that left New
//! York City in 2013. Prints the number of unusual turnarounds of each kind.
//!
//! ```sh
//! python examples/data.py
//! velo supervisor start --socket /tmp/velo.sock &
//! cargo run --release --example feed -- /tmp/velo.sock examples/data/flights.csv
//! ```
//!
//! `examples/flights.py` does the same by `velo run`, with the same counts.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use velo_supervisor::stream::{Connection, StreamOptions};

/// The fields that the function reads; Python gets a dict.
#[derive(Serialize)]
struct Flight {
    dep_delay: Option<i64>,
    arr_delay: Option<i64>,
    air_time: Option<i64>,
    minute: i64,
    time_hour: String,
    carrier: String,
    flight: String,
    origin: String,
    dest: String,
}

/// The field of a result that this program reads.
#[derive(Deserialize)]
struct Finding {
    why: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [socket, data] = &arguments[..] else {
        return Err("give the supervisor's socket and the file of flights".into());
    };
    let aircraft = flights_by_aircraft(Path::new(data))?;

    let velo = Connection::connect(socket)?;
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (tail, flights) in &aircraft {
        let options = StreamOptions::new().path(&functions).name(tail);
        let mut turnarounds = velo.open("flights:turnarounds", &options)?;
        for finding in turnarounds.feed::<Finding, _>(flights) {
            *counts.entry(finding?.why).or_default() += 1;
        }
        turnarounds.end()?;
        assert!(
            turnarounds.recv::<Finding>()?.is_none(),
            "none after the last flight"
        );
    }

    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    println!("{:>7}  aircraft", aircraft.len());
    for (why, count) in counts {
        println!("{count:>7}  {why}");
    }
    Ok(())
}

/// The flights of each aircraft, in order. The file has no quoted fields.
fn flights_by_aircraft(data: &Path) -> Result<BTreeMap<String, Vec<Flight>>, Box<dyn Error>> {
    let mut lines = BufReader::new(std::fs::File::open(data)?).lines();
    let head = lines.next().ok_or("the file is empty")??;
    let names: Vec<_> = head.split(',').collect();
    let at = |name: &str| {
        let place = names.iter().position(|known| *known == name);
        place.ok_or_else(|| format!("the file has no column `{name}`"))
    };
    let columns = [
        at("dep_delay")?,
        at("arr_delay")?,
        at("air_time")?,
        at("minute")?,
        at("time_hour")?,
        at("carrier")?,
        at("flight")?,
        at("origin")?,
        at("dest")?,
        at("tailnum")?,
    ];
    let mut aircraft: BTreeMap<String, Vec<Flight>> = BTreeMap::new();
    for line in lines {
        let line = line?;
        let fields: Vec<_> = line.split(',').collect();
        let [
            dep_delay,
            arr_delay,
            air_time,
            minute,
            time_hour,
            carrier,
            flight,
            origin,
            dest,
            tail,
        ] = columns.map(|column| fields.get(column).copied().unwrap_or_default());
        if tail.is_empty() {
            continue; // cancelled before it had an aircraft
        }
        aircraft.entry(tail.to_owned()).or_default().push(Flight {
            dep_delay: dep_delay.parse().ok(),
            arr_delay: arr_delay.parse().ok(),
            air_time: air_time.parse().ok(),
            minute: minute.parse()?,
            time_hour: time_hour.to_owned(),
            carrier: carrier.to_owned(),
            flight: flight.to_owned(),
            origin: origin.to_owned(),
            dest: dest.to_owned(),
        });
    }
    Ok(aircraft)
}
