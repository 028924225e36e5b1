//! Writes small ONNX models, field by field of `onnx.proto`, so that tests and benches need no
//! package to make them.

#![allow(dead_code, missing_docs)]

/// Element types by their numbers in `TensorProto.DataType`.
pub const FLOAT: i64 = 1;
pub const UINT8: i64 = 2;
pub const INT8: i64 = 3;
pub const UINT16: i64 = 4;
pub const INT16: i64 = 5;
pub const INT32: i64 = 6;
pub const INT64: i64 = 7;
pub const STRING: i64 = 8;
pub const BOOL: i64 = 9;
pub const FLOAT16: i64 = 10;
pub const DOUBLE: i64 = 11;
pub const UINT32: i64 = 12;
pub const UINT64: i64 = 13;
pub const BFLOAT16: i64 = 16;
pub const FLOAT8: i64 = 17;

/// A dimension of a declared tensor.
#[derive(Clone, Copy)]
pub enum Dim {
    Fixed(i64),
    Named(&'static str),
    Any,
}

/// A message of protobuf under construction.
#[derive(Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn integer(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A graph under construction.
#[derive(Clone, Default)]
pub struct Graph(Message);

impl Graph {
    pub fn input(self, name: &str, element: i64, dims: &[Dim]) -> Self {
        Self(self.0.message(11, &value_info(name, element, Some(dims))))
    }

    pub fn output(self, name: &str, element: i64, dims: &[Dim]) -> Self {
        Self(self.0.message(12, &value_info(name, element, Some(dims))))
    }

    pub fn output_without_shape(self, name: &str, element: i64) -> Self {
        Self(self.0.message(12, &value_info(name, element, None)))
    }

    pub fn node(self, kind: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(kind, inputs, outputs, &[])
    }

    /// A node with attributes made by [`attribute`].
    pub fn node_with(
        self,
        kind: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Message],
    ) -> Self {
        let mut node = Message::default();
        for input in inputs {
            node = node.text(1, input);
        }
        for output in outputs {
            node = node.text(2, output);
        }
        node = node.text(4, kind);
        for attribute in attributes {
            node = node.message(5, attribute);
        }
        Self(self.0.message(1, &node))
    }

    pub fn weights(self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, FLOAT, dims, &raw)
    }

    pub fn initializer(self, name: &str, element: i64, dims: &[i64], raw: &[u8]) -> Self {
        let mut tensor = Message::default();
        for &dim in dims {
            tensor = tensor.integer(1, dim);
        }
        tensor = tensor.integer(2, element).text(8, name).bytes(9, raw);
        Self(self.0.message(5, &tensor))
    }

    /// The whole model file.
    pub fn into_model(self) -> Vec<u8> {
        let opset = Message::default().text(1, "").integer(2, 19);
        let graph = self.0.text(2, "test");
        Message::default().integer(1, 9).message(8, &opset).message(7, &graph).into_bytes()
    }
}

/// An integer attribute of a node.
pub fn attribute(name: &str, value: i64) -> Message {
    Message::default().text(1, name).integer(3, value).integer(20, 2)
}

/// An attribute that is a graph.
pub fn graph_attribute(name: &str, graph: Graph) -> Message {
    Message::default().text(1, name).message(6, &graph.0.text(2, name)).integer(20, 5)
}

/// `y = x`, or whatever else one node of one input makes of it.
pub fn unary(kind: &str, element: i64, dims: &[Dim]) -> Vec<u8> {
    Graph::default()
        .input("x", element, dims)
        .node(kind, &["x"], &["y"])
        .output("y", element, dims)
        .into_model()
}

/// `logits[b,10] = relu(x[b,64] · first[64,256]) · second[256,10]` with small made-up weights.
pub fn mlp() -> Vec<u8> {
    let batch = Dim::Named("b");
    Graph::default()
        .input("x", FLOAT, &[batch, Dim::Fixed(64)])
        .weights("first", &[64, 256], &mlp_weights(64 * 256, 1))
        .weights("second", &[256, 10], &mlp_weights(256 * 10, 2))
        .node("MatMul", &["x", "first"], &["before"])
        .node("Relu", &["before"], &["hidden"])
        .node("MatMul", &["hidden", "second"], &["logits"])
        .output("logits", FLOAT, &[batch, Dim::Fixed(10)])
        .into_model()
}

/// The weights of [`mlp`], in `[-0.5, 0.5)`.
pub fn mlp_weights(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 31 + seed * 17) % 97) as f32 / 97.0 - 0.5).collect()
}

fn value_info(name: &str, element: i64, dims: Option<&[Dim]>) -> Message {
    let mut tensor = Message::default().integer(1, element);
    if let Some(dims) = dims {
        let mut shape = Message::default();
        for dim in dims {
            let dim = match dim {
                Dim::Fixed(size) => Message::default().integer(1, *size),
                Dim::Named(name) => Message::default().text(2, name),
                Dim::Any => Message::default(),
            };
            shape = shape.message(1, &dim);
        }
        tensor = tensor.message(2, &shape);
    }
    let kind = Message::default().message(1, &tensor);
    Message::default().text(1, name).message(2, &kind)
}
