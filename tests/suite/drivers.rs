//! Drivers that stand over another one: whatever they do not change, the one underneath answers.

use gems_engine::backend::cuda::Faults;
use gems_engine::backend::cuda::abi::{Launch, Matrix, TensorMap};
use gems_engine::backend::cuda::driver::{Driver, Event, Graph, Node, PlainProduct};
use gems_engine::backend::cuda::drivers::{Faulty, GraphDriver};
use gems_engine::backend::work::Peaks;
use gems_engine::backend::{DType, DeviceInfo};
use gems_engine::error::{Error, Result};
use std::sync::Arc;
use std::time::Instant;

/// Offers everything, and every answer differs from that of a device without it.
struct Rich {
    info: DeviceInfo,
    opened: Instant,
}

impl Rich {
    fn open() -> Self {
        let info = DeviceInfo {
            name: "rich".into(),
            peaks: Some(Peaks { bytes_per_second: 1.0, flops_per_second: 2.0 }),
            computes: false,
            blas: true,
            ..DeviceInfo::of_image("sm_90a", 77)
        };
        Self { info, opened: Instant::now() }
    }
}

struct Idle;

impl Graph for Idle {
    fn replace(&mut self, _: usize, _: &Node) -> Result<()> {
        Ok(())
    }
    fn start(&self) -> Result<()> {
        Ok(())
    }
}

impl Driver for Rich {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn inner(&self) -> Option<&dyn Driver> {
        None
    }
    fn alloc(&self, _: usize) -> Result<Option<u64>> {
        Ok(Some(4096))
    }
    fn free(&self, _: u64, _: usize) {}
    fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn launch(&self, _: &str, _: Launch, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn graph(&self, _: &[Node]) -> Result<Option<Box<dyn Graph>>> {
        Ok(Some(Box::new(Idle)))
    }
    fn plain_product(&self, _: &PlainProduct, _: (f32, f32), _: [u64; 3]) -> Result<bool> {
        Ok(true)
    }
    fn tensor_map(&self, _: &Matrix, _: usize) -> Result<TensorMap> {
        Ok(TensorMap { opaque: [7; 16] })
    }
    fn event(&self) -> Result<Event> {
        Ok(Event::Host(self.opened))
    }
    fn memory_report(&self) -> Option<String> {
        Some("most of it is left".into())
    }
    fn profiler(&self, _: bool) -> Result<()> {
        Err(Error::device("no profiler is attached"))
    }
}

#[test]
fn a_driver_over_another_leaves_nothing_out() {
    let rich = Arc::new(Rich::open());
    let faulty = Faulty::over(rich.clone(), Faults::default());
    let graphs = Arc::new(GraphDriver::over(rich.clone()));
    let both = Faulty::over(graphs.clone(), Faults::default());
    let drivers: [(&str, &dyn Driver); 4] =
        [("rich", &*rich), ("faulty", &faulty), ("graphs", &*graphs), ("faulty over graphs", &both)];
    let product =
        PlainProduct { m: 8, n: 8, k: 8, transpose_a: false, transpose_b: false, ld: [8; 3], c: DType::F32 };
    for (name, driver) in drivers {
        let info = DeviceInfo { name: rich.info.name.clone(), ..driver.info().clone() };
        assert_eq!(info, rich.info, "{name}");
        assert!(driver.graph(&[]).unwrap().is_some(), "{name}: graph");
        assert!(driver.plain_product(&product, (1.0, 0.0), [4096; 3]).unwrap(), "{name}: plain_product");
        assert_eq!(
            driver.tensor_map(&Matrix::NONE, 64).unwrap(),
            TensorMap { opaque: [7; 16] },
            "{name}: tensor_map"
        );
        let at_opening = matches!(driver.event().unwrap(), Event::Host(at) if at == rich.opened);
        assert!(at_opening, "{name}: event");
        assert_eq!(driver.memory_report().as_deref(), Some("most of it is left"), "{name}: memory_report");
        assert!(driver.profiler(true).is_err(), "{name}: profiler");
    }
}
