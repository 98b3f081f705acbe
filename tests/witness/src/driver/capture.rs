//! Capturing a stream: what it is given becomes nodes of a graph, each after the one before. Waits and allocations are
//! not allowed meanwhile; capturing several streams into one graph is not known here.

use super::arguments::Out;
use super::graph::{Graph, Node, Task};
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};
use std::ffi::c_uint;

impl Driver {
    /// Whether what the stream is given becomes nodes of a graph.
    pub fn is_capturing(&self, stream: usize) -> bool {
        self.streams.get(&self.key(stream)).is_some_and(|s| s.capture.is_some())
    }

    /// Refuses what a stream that is captured cannot do; its capture is of no use any more.
    pub fn not_captured(&mut self, stream: usize, what: &str) -> Answer {
        let key = self.key(stream);
        match self.streams.get_mut(&key).filter(|s| s.capture.is_some()) {
            Some(stream) => {
                stream.capture_broken = true;
                refuse(STREAM_CAPTURE_UNSUPPORTED, format!("{what} while the stream is captured"))
            }
            None => Ok(()),
        }
    }

    /// Refuses what may not be done while any stream is captured.
    pub fn not_while_capturing(&mut self, what: &str) -> Answer {
        for key in self.capturing() {
            self.not_captured(key, what)?;
        }
        Ok(())
    }

    /// Makes a node of a captured stream's work.
    pub fn capture(&mut self, key: usize, work: Work) -> Answer {
        let task = match work {
            Work::Kernel(start) => Task::Kernel(start),
            Work::ToDevice { to, from } => Task::ToDevice { to, from: from.at, bytes: from.bytes.len() },
            Work::ToHost { to, from, bytes } => Task::ToHost { to, from, bytes },
            Work::Within { to, from, bytes } => Task::Within { to, from, bytes },
            Work::Set { to, value, bytes } => Task::Set { to, value, bytes },
            _ => return self.not_captured(key, self.calling),
        };
        let handle = self.handle();
        let graph = self.streams[&key].capture.and_then(|graph| self.graphs.get_mut(&graph));
        if let Some(graph) = graph {
            let after = graph.nodes.last().map(|n| n.handle).into_iter().collect();
            graph.nodes.push(Node { handle, task, after });
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) -> Status {
    bound("cuStreamBeginCapture_v2", |driver, context| {
        driver.stream(stream, context)?;
        if stream <= 1 {
            return refuse(STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
        }
        if mode > 2 || driver.is_capturing(stream) {
            return refuse(ILLEGAL_STATE, format!("mode {mode}, or the stream is captured already"));
        }
        let graph = driver.handle();
        driver.graphs.insert(graph, Graph::default());
        if let Some(stream) = driver.streams.get_mut(&stream) {
            (stream.capture, stream.capture_broken) = (Some(graph), false);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: usize, graph: Out<usize>) -> Status {
    bound("cuStreamEndCapture", |driver, context| {
        driver.stream(stream, context)?;
        let known = driver.streams.get_mut(&stream);
        let Some((captured, broken)) = known.and_then(|s| Some((s.capture.take()?, s.capture_broken))) else {
            return refuse(ILLEGAL_STATE, "the stream is not captured");
        };
        if broken {
            driver.graphs.remove(&captured);
            graph.put(0)?;
            return refuse(
                STREAM_CAPTURE_INVALIDATED,
                "something was asked for meanwhile that a capture does not allow",
            );
        }
        graph.put(captured)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: usize, status: Out<c_uint>) -> Status {
    bound("cuStreamIsCapturing", |driver, context| {
        driver.stream(stream, context)?;
        let known = &driver.streams[&driver.key(stream)];
        status.put(match (known.capture, known.capture_broken) {
            (None, _) => 0,
            (Some(_), false) => 1,
            (Some(_), true) => 2,
        })
    })
}
