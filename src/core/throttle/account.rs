//! What guests were allowed over their target in the last ten seconds, and what they had. Pure.

/// What a tick leaves of the account of what guests were allowed and had: it covers about ten seconds.
const ACCOUNT_KEEPS: f64 = 0.99;

/// Operations over the target, and how many were allowed, of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    allowed: f64,
    over: f64,
}

impl Account {
    /// A tick's operations: how many may be over the target, and how many were.
    pub fn enter(&mut self, allowed: f64, over: f64) {
        self.allowed = self.allowed * ACCOUNT_KEEPS + allowed;
        self.over = self.over * ACCOUNT_KEEPS + over;
    }

    /// The part of what was allowed that is left; 0: all is spent, or more.
    pub fn left(&self) -> f64 {
        if self.allowed > 0.0 { (1.0 - self.over / self.allowed).max(0.0) } else { 0.0 }
    }
}
