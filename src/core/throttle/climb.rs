//! How the rate rises: a search until a limit is met, then in proportion to guests' headroom, back towards a limit that was met,
//! and slowly near it. Pure. Units: bytes per second.

/// The constant part of an increase, per tick: one window a second, ten times in a second.
const STEP_BYTES_PER_SEC: f64 = 262_144.0;
/// The search's largest increase of a tick, in proportion to the headroom, and the headroom that it counts with at least.
const SEARCH_GAIN: f64 = 0.25;
const SEARCH_HEADROOM_MIN: f64 = 0.2;
/// Where no limit is known and so much is left of the allowance of ten seconds, the search goes on: it may have ended by a
/// moment of the machine's.
const SEARCH_ON: f64 = 0.8;
/// From this part of the rate at the last overload on, the increase is slow.
const NEAR_KNEE: f64 = 0.85;
/// Beyond this multiple of it the old limit has gone.
const PAST_KNEE: f64 = 1.2;
/// The largest increase of a tick in proportion to the headroom, below [`NEAR_KNEE`] and from there on. A change shows after two
/// to three ticks, so that the rate is past its limit by less than half when it shows.
const FAR_GAIN: f64 = 0.12;
const NEAR_GAIN: f64 = 0.06;
/// A tick makes so much of the way back to [`NEAR_KNEE`], if guests have [`HEADROOM_FULL`]: nine tenths in 3 s. Many an overload
/// is a moment of the machine's, or a change of a configuration, of which nothing is left; where the limit has fallen, headroom
/// ends before. The idea is CUBIC's (RFC 9438, section 4.7).
const BACK: f64 = 0.07;
const HEADROOM_FULL: f64 = 0.25;
/// An overload takes no more than this from the rate of the one before: moments of the machine's that follow each other would
/// wear it down.
const KNEE_KEEPS: f64 = 0.9;

/// What guests show of the room that is left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The part of the target that the p99 stays below it; positive.
    pub headroom: f64,
    /// How well that is known, 0 to 1.
    pub known: f64,
    /// The part that is left of the allowance of the last ten seconds.
    pub left: f64,
}

/// What is known of the limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climb {
    /// No limit was met yet in this busy period.
    searching: bool,
    /// The rate at the last overload, if that limit still holds.
    knee: Option<f64>,
}

impl Climb {
    /// Of the limit nothing is known.
    pub fn new() -> Self {
        Climb { searching: true, knee: None }
    }

    /// Guests are back: a limit that was met still holds.
    pub fn wake(&mut self) {
        self.searching = self.knee.is_none();
    }

    /// Another target has another limit.
    pub fn forget(&mut self) {
        self.knee = None;
    }

    /// Guests lack something: no large steps any more.
    pub fn end_search(&mut self) {
        self.searching = false;
    }

    /// An overload at this rate.
    pub fn met(&mut self, rate: f64, known: f64) {
        let before = self.knee.unwrap_or(0.0) * known;
        self.knee = Some(rate.max(KNEE_KEEPS * before));
    }

    pub fn knee(&self) -> Option<f64> {
        self.knee
    }

    pub fn is_searching(&self) -> bool {
        self.searching
    }

    /// The rate of the next tick, `fine` at least.
    pub fn increased(&mut self, rate: f64, fine: f64, room: Room) -> f64 {
        if self.searching || self.knee.is_none() && room.left >= SEARCH_ON {
            return rate * (1.0 + SEARCH_GAIN * room.headroom.max(SEARCH_HEADROOM_MIN)) + STEP_BYTES_PER_SEC;
        }
        self.knee = self.knee.filter(|knee| rate < PAST_KNEE * knee);
        // An overload with a sharp edge spends ten seconds' allowance at once; where much is left the limit has moved, as when
        // other disks' copies have ended.
        let near = self.knee.is_some_and(|knee| rate > NEAR_KNEE * knee);
        let far = NEAR_GAIN + (FAR_GAIN - NEAR_GAIN) * room.known;
        let (gain, part) = if near { (NEAR_GAIN, room.left) } else { (far, 1.0) };
        let coarse = gain * room.headroom * rate + STEP_BYTES_PER_SEC.min(rate * 0.05 + 4096.0);
        let way = self.knee.map_or(0.0, |knee| NEAR_KNEE * knee - rate);
        let back = BACK * way * (room.headroom / HEADROOM_FULL).min(1.0) * room.known;
        fine.max(rate + coarse * part).max(rate + back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;
    const ROOM: Room = Room { headroom: 0.5, known: 1.0, left: 0.5 };

    fn after(climb: &mut Climb, mut rate: f64, ticks: u32, room: Room) -> f64 {
        (0..ticks).for_each(|_| rate = climb.increased(rate, rate, room));
        rate
    }

    #[test]
    fn a_search_doubles_each_second_and_ends_with_a_limit() {
        let mut climb = Climb::new();
        assert!(after(&mut climb, 8.0 * MIB, 10, ROOM) > 20.0 * MIB);
        climb.end_search();
        let slower = after(&mut climb, 8.0 * MIB, 10, ROOM);
        assert!(slower < 20.0 * MIB, "{slower}");
        // Guests were hardly ever over their target: it goes on.
        assert!(after(&mut climb, 8.0 * MIB, 10, Room { left: 0.9, ..ROOM }) > 20.0 * MIB);
        climb.met(100.0 * MIB, 1.0);
        climb.wake();
        assert!(!climb.is_searching());
    }

    #[test]
    fn a_moments_overload_is_made_up_for_in_seconds() {
        let mut climb = Climb::new();
        climb.end_search();
        climb.met(100.0 * MIB, 1.0);
        let rate = after(&mut climb, 15.0 * MIB, 20, ROOM);
        assert!((70.0 * MIB..100.0 * MIB).contains(&rate), "{rate}");
        // Where the limit has fallen guests have no headroom.
        let rate = after(&mut climb, 15.0 * MIB, 20, Room { headroom: 0.02, ..ROOM });
        assert!(rate < 35.0 * MIB, "{rate}");
        // Near the limit it takes what is left of the allowance.
        assert_eq!(after(&mut climb, 90.0 * MIB, 20, Room { left: 0.0, ..ROOM }), 90.0 * MIB);
    }

    #[test]
    fn overloads_that_follow_each_other_do_not_wear_the_limit_down() {
        let mut climb = Climb::new();
        climb.end_search();
        climb.met(100.0 * MIB, 1.0);
        climb.met(20.0 * MIB, 1.0);
        assert!(climb.knee() >= Some(89.0 * MIB));
        climb.met(20.0 * MIB, 0.1);
        assert!(climb.knee() <= Some(20.0 * MIB), "of few operations the last is known best");
        after(&mut climb, 25.0 * MIB, 1, ROOM);
        assert_eq!(climb.knee(), None, "the old limit has gone");
    }
}
