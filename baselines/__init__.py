"""Methods that are not the paper's, one file each; `trm_bench.methods` names them."""
