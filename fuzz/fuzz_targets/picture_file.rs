//! Picture files: any bytes are decoded, within bounds, or refused.
#![no_main]

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nereid::{
    backend::{Host, ModelInstance, ModelRequest, Placement, PlacementDevice, Responder},
    inference::{Admitted, AdmittedInput, DataType, Parameters, Rope, Shape},
    memory::BufferPool,
};
use nereid_fuzz::{Unheard, chain_model};

const CHAIN: &str = r#"[{"op": "decode", "max_pixels": 65536}, {"op": "resize", "shorter": 16},
    {"op": "crop", "size": [16, 16]}, {"op": "normalize", "std": 255}, {"op": "layout", "to": "CHW"}]"#;

fuzz_target!(|file: &[u8]| {
    static MODEL: OnceLock<(Mutex<ModelInstance>, Arc<Host>)> = OnceLock::new();
    let (instance, host) = MODEL.get_or_init(|| {
        let pool = BufferPool::new(1 << 20, 256 << 20).expect("memory");
        let host = Arc::new(Host::without_models(pool));
        let place = Placement {
            name: "m_0".to_owned(),
            device: PlacementDevice::Cpu,
            host_policy: "cpu".to_owned(),
        };
        let model = chain_model(CHAIN, DataType::Bytes, &[1]).expect("a chain that can be");
        (Mutex::new(model.instance(&place, &host).expect("an instance")), host)
    });
    let mut wire = (file.len() as u32).to_le_bytes().to_vec();
    wire.extend_from_slice(file);
    let data = Rope::from(Bytes::from(wire));
    let input = AdmittedInput { shape: Shape::from([1, 1]), data };
    let request = ModelRequest {
        id: Default::default(),
        tensors: Admitted {
            batch_size: 1,
            inputs: [Some(input)].into_iter().collect(),
            outputs: [0].into_iter().collect(),
            classes: Default::default(),
        },
        parameters: Parameters::default(),
        sequence: None,
        priority: 0,
        queue_timeout: None,
        callers: None,
        deadline: None,
        trace: None,
        responder: Responder::new(Box::new(Unheard)),
    };
    match &mut *instance.lock().expect("no other thread") {
        ModelInstance::Requests(instance) => instance.execute(vec![request], host),
        ModelInstance::Batches(_) => unreachable!("files are answered one by one"),
    }
    assert_eq!(host.pool.used(), 0, "memory was kept");
});
