import{a}from"./chunk-QOYSJR2T.js";import"./chunk-QH5QXFHW.js";import"./chunk-KHLJXZHA.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
