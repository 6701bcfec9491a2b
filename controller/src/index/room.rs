//! DECISION: what stands behind one workload, or at one address, where number and ports are bounded?
//!
//! Every proxy remembers each workload with each port of each of its Services, so that what authors write is multiplied by
//! the workloads. They are asked about in the order of their names. Who does not fit whole is left out, and so is everybody
//! behind it: each replica comes to the same answer, and nobody beyond the bound costs a step.

/// What is left of a bound on Services, and on the ports of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    services: usize,
    ports: usize,
}

// === impl Room ===

impl Room {
    /// Nobody is in it yet.
    pub(super) const fn new(services: usize, ports: usize) -> Self {
        Self { services, ports }
    }

    /// Takes in the next one, which brings so many ports. Once one does not fit nobody does.
    pub(super) fn takes(&mut self, ports: usize) -> bool {
        let left = match (self.services.checked_sub(1), self.ports.checked_sub(ports)) {
            (Some(services), Some(ports)) => Some(Self { services, ports }),
            _ => None,
        };
        *self = left.unwrap_or(Self::new(0, 0));
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_fit_whole_are_taken_and_nobody_behind_them() {
        // The ports of each, and how many of them there is room for: for 3 of them with 10 ports.
        for (ports, taken) in [
            (&[1, 1][..], 2),
            (&[], 0),
            (&[1, 1, 1, 0], 3),
            (&[0, 0, 0, 0, 0], 3),
            (&[4, 6, 0], 3),
            (&[4, 6, 1, 0], 2),
            (&[4, 7, 1, 1], 1),
            (&[11, 1, 1], 0),
        ] {
            let mut room = Room::new(3, 10);
            let fit: Vec<bool> = ports.iter().map(|ports| room.takes(*ports)).collect();
            let expected: Vec<bool> = (0..ports.len()).map(|at| at < taken).collect();
            assert_eq!(fit, expected, "{ports:?}");
        }
    }
}
