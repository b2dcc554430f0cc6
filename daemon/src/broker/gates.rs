//! Back-pressure: how many requests may be in flight. A connection's reader passes its client's gate and its
//! user's before a request becomes an event; while a gate is shut, the socket is not read.
//!
//! Notices pass no gate. What a request is, is not known here.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets as many through at a time as there are places.
#[derive(Clone, Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    count_max: usize,
}

/// A request in flight: its places at both gates, which are free again when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _client: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

/// The two gates that a connection's requests pass.
#[derive(Clone, Debug)]
pub struct Gates {
    /// Of this connection alone.
    pub client: Gate,
    /// Of all connections of its user.
    pub user: Gate,
}

impl Gate {
    /// With this many places.
    pub fn new(count_max: usize) -> Gate {
        Gate { places: Arc::new(Semaphore::new(count_max)), count_max }
    }

    /// Lets nobody through any more, and tells those who wait so.
    pub fn close(&self) {
        self.places.close();
    }

    /// How many may be through at a time.
    pub fn count_max(&self) -> usize {
        self.count_max
    }

    /// How many are through now.
    pub fn passed_count(&self) -> usize {
        self.count_max.saturating_sub(self.places.available_permits())
    }

    /// Changes the number of places. Who is through stays through: places are taken away as they become
    /// free, before anyone else gets them.
    pub fn resize(&mut self, count_max: usize) {
        if count_max >= self.count_max {
            self.places.add_permits(count_max - self.count_max);
        } else if let Ok(surplus) = u32::try_from(self.count_max - count_max) {
            let places = Arc::clone(&self.places);
            tokio::spawn(async move {
                if let Ok(taken) = places.acquire_many_owned(surplus).await {
                    taken.forget();
                }
            });
        }
        self.count_max = count_max;
    }
}

impl Gates {
    /// A place at both gates, if both have one.
    pub fn try_pass(&self) -> Option<Turn> {
        let client = Arc::clone(&self.client.places).try_acquire_owned().ok()?;
        let user = Arc::clone(&self.user.places).try_acquire_owned().ok()?;
        Some(Turn { _client: client, _user: user })
    }

    /// Waits for a place at both gates, in the order of coming; none where the client's was closed. A place at the client's gate is held while the
    /// user's is waited for; that holds up nobody else, and places at the user's gate come back with answers,
    /// which need none.
    pub async fn pass(&self) -> Option<Turn> {
        let client = Arc::clone(&self.client.places).acquire_owned().await.ok()?;
        let user = Arc::clone(&self.user.places).acquire_owned().await.ok()?;
        Some(Turn { _client: client, _user: user })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn try_pass(gates: &Gates) -> Option<Turn> {
        poll(pin!(gates.pass())).flatten()
    }

    #[test]
    fn full_gate_of_the_user_stops_other_clients_until_a_turn_ends() {
        let user = Gate::new(2);
        let [one, other] = [(); 2].map(|()| Gates { client: Gate::new(8), user: user.clone() });
        let turns = [try_pass(&one).unwrap(), try_pass(&one).unwrap()];
        let mut waiting = pin!(other.pass());
        assert!(poll(waiting.as_mut()).is_none());
        drop(turns);
        assert!(poll(waiting.as_mut()).flatten().is_some());
    }

    #[test]
    fn full_gate_of_a_client_stops_nobody_else() {
        let user = Gate::new(8);
        let [one, other] = [(); 2].map(|()| Gates { client: Gate::new(1), user: user.clone() });
        let _turn = try_pass(&one).unwrap();
        assert!(try_pass(&one).is_none());
        assert!(try_pass(&other).is_some());
    }

    #[test]
    fn gate_is_narrowed_as_turns_end_and_widened_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut gates = Gates { client: Gate::new(3), user: Gate::new(8) };
            let mut turns = vec![];
            for _ in 0..3 {
                turns.push(gates.pass().await.unwrap());
            }
            gates.client.resize(1);
            tokio::task::yield_now().await;
            turns.truncate(1);
            tokio::task::yield_now().await;
            assert!(try_pass(&gates).is_none());
            gates.client.resize(2);
            assert!(try_pass(&gates).is_some());
        });
    }
}
