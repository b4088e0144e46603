;; SPDX-License-Identifier: Apache-2.0
;; The right names with the wrong types.
(module
  (memory (export "memory") 1)
  (func (export "roadrunner_abi") (result i32) (i32.const 1))
  (func (export "roadrunner_handle") (param i64) (result i64) (local.get 0)))
