import{a}from"./chunk-2AXXKIJD.js";import"./chunk-ECVJLF7M.js";import"./chunk-7L4EIDGQ.js";import"./chunk-M7ZT4OVL.js";import"./chunk-HONXV5ZE.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
