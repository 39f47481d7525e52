//! Scratch of a breadth-first search over disks, whose edges are PGs: who was reached from where, and by which PG.
//!
//! A search costs what it touches, however many disks there are.

use std::collections::VecDeque;

use super::layout::NONE;

/// The scratch; one serves many searches.
pub(super) struct Paths {
    /// (neighbour towards the start, the PG between).
    came: Vec<(u32, u32)>,
    touched: Vec<u32>,
}

impl Paths {
    /// For so many disks.
    pub fn new(disks: usize) -> Self {
        Paths { came: vec![(NONE, NONE); disks], touched: Vec::new() }
    }

    /// Forgets the last search; gives the queue of the next.
    pub fn begin(&mut self, start: u32) -> VecDeque<u32> {
        for d in self.touched.drain(..) {
            self.came[d as usize] = (NONE, NONE);
        }
        self.reach(start, start, NONE);
        VecDeque::from([start])
    }

    /// `d` is reached from its neighbour.
    pub fn reach(&mut self, d: u32, from: u32, pg: u32) {
        self.came[d as usize] = (from, pg);
        self.touched.push(d);
    }

    /// This search has been there.
    pub fn is_reached(&self, d: u32) -> bool {
        self.came[d as usize].0 != NONE
    }

    /// The way from `end` back to `start`: (disk, the next one towards the start, the PG between).
    pub fn back(&self, start: u32, end: u32) -> Vec<(u32, u32, u32)> {
        let (mut path, mut d) = (Vec::new(), end);
        while d != start {
            let (from, pg) = self.came[d as usize];
            path.push((d, from, pg));
            d = from;
        }
        path
    }
}
