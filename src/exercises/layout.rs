//! Writes a `train.py` in one of the bundled tasks' layouts, with any values in it. Text only: nothing runs.

/// Inputs of a script: how it prepares its data before the features.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Rows of a table, or images as rows: the first columns are used.
    Columns(usize),
    /// Texts, and the vectorizer with its arguments, such as `CountVectorizer(max_features=20)`.
    Words(String),
    /// Windows of a series, of which the last values are used.
    History(usize),
    /// A graph: columns of its node features, and rounds of averaging over neighbours. It has no rows line.
    Graph {
        /// Columns used.
        columns: usize,
        /// Rounds of averaging.
        hops: usize,
    },
}

/// The values of a script.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Modules imported from sklearn, such as `linear_model, ensemble`.
    pub modules: String,
    /// Rows used for training.
    pub rows: usize,
    /// Inputs of the script.
    pub inputs: Inputs,
    /// The estimator with its arguments.
    pub model: String,
    /// The method whose output is submitted: `predict` or `predict_proba`.
    pub output: &'static str,
}

impl Layout {
    /// Writes the script, with a newline at its end.
    pub fn script(&self) -> String {
        let Self { modules, rows, inputs, model, output } = self;
        let rows = format!(
            "X, y, Z = data[\"X\"], data[\"y\"], data[\"Z\"]\n\
             # rows\n\
             n = {rows}\n\
             X, y = X[:n], y[:n]\n"
        );
        let inputs = match inputs {
            Inputs::Columns(k) => format!("{rows}# columns\nk = {k}\nX, Z = X[:, :k], Z[:, :k]\n"),
            Inputs::Words(vectorizer) => format!(
                "{rows}# words\n\
                 vec = text.{vectorizer}\n\
                 X = vec.fit_transform(X).toarray()\n\
                 Z = vec.transform(Z).toarray()\n"
            ),
            Inputs::History(lags) => {
                format!("{rows}# history\nlags = {lags}\nX, Z = X[:, -lags:], Z[:, -lags:]\n")
            }
            Inputs::Graph { columns, hops } => format!(
                "A, F, y = data[\"A\"], data[\"F\"], data[\"y\"]\n\
                 # columns\n\
                 k = {columns}\n\
                 F = F[:, :k]\n\
                 # neighbours\n\
                 hops = {hops}\n\
                 for i in range(hops):\n    \
                     F = A @ F\n\
                 X, Z = F[data[\"a\"]], F[data[\"b\"]]\n"
            ),
        };
        let text = match self.inputs {
            Inputs::Words(_) => "from sklearn.feature_extraction import text\n",
            _ => "",
        };
        format!(
            "import numpy as np\n\
             from sklearn import {modules}\n\
             {text}\n\
             data = np.load(\"data.npz\")\n\
             {inputs}\
             # features\n\
             # model\n\
             model = {model}\n\
             model.fit(X, y)\n\
             print(\"train score\", round(model.score(X, y), 2))\n\
             p = model.{output}(Z)\n\
             np.savetxt(\"submission.csv\", p, delimiter=\",\")\n"
        )
    }
}
