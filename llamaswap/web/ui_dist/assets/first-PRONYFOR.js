import{a}from"./chunk-SEDEDHNQ.js";import"./chunk-BCY7NDOZ.js";import"./chunk-7KD3PGTK.js";import"./chunk-7KWALEBD.js";import"./chunk-HONXV5ZE.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
